from q import *
import concurrent.futures as cf
ex=cf.ThreadPoolExecutor(16)
def req(m,p,**k):
    t=time.time(); a=requests.request(m,B+p,timeout=60,**k); return a.status_code,a.text
I=ids(80); bad=[]
# PATCH vs DELETE on uploads
lost=[]
for n in range(25):
    data=png(1000+n,(48,48)); a=requests.post(B+"/upload",files={"files":("x.png",data)}).json(); ident=a["images"][0]["id"]
    fs={k:ex.submit(req,*v[0],**v[1]) for k,v in {"p1":(("PATCH","/images/"+ident),dict(json={"label":"L"})),"d":(("DELETE","/images/"+ident),{}),"p2":(("PATCH","/images/"+ident),dict(json={"price":2})),"u":(("POST","/upload"),dict(files={"files":("x.png",data)})),"s":(("POST","/search"),dict(json={"like":[{"id":ident}]})),"g":(("GET","/images/"+ident+"/view"),{})}.items()}
    res={k:f.result() for k,f in fs.items()}
    for k,(c,t) in res.items():
        if c>=500: bad.append((n,k,c,t[:120]))
    g=req("GET","/images/"+ident); v=requests.get(B+f"/images/{ident}/view"); 
    if g[0]==200 and v.status_code!=200: lost.append((ident,res["u"],v.status_code,v.text[:100]))
    if n<3: print({k:x[0] for k,x in res.items()},g[0],v.status_code)
print("bad",bad[:6],len(bad)); print("lost",lost[:3],len(lost))
