"""What the classes of Fashion-MNIST and of the ten animals look like, in words.

A line without indentation is a class, each further line describes it: by default for training, after "val:" to choose
settings with, after "test:" to report.
"""

FASHION = """
T-shirt
    t-shirt
    a tee
    a plain cotton tee with short sleeves
    a short-sleeved top with a round neck
    a summer t-shirt, worn over shorts or jeans
    a loose t-shirt with a print on the chest
    something light with short sleeves and no collar
    a top that ends at the hips and leaves the arms bare
    val: a cotton t-shirt with a print
    test: a light top with short sleeves
    test: a round neck tee for summer
Trouser
    trousers
    a pair of trousers
    long pants with two straight legs
    jeans
    slim pants that reach down to the ankles
    dark trousers for the office, with a crease
    leggings, tight around both legs
    what covers the legs from the waist to the feet
    val: a pair of jeans with straight legs
    test: tight pants with long legs
    test: something for both legs, from the waist down
Pullover
    pullover
    a sweater
    a warm knitted jumper
    a wool sweater with long sleeves, pulled over the head
    a thick jumper without buttons or a zip
    a hoodie or sweatshirt for cool evenings
    a soft pullover with a high neck
    knitwear that keeps the arms and the chest warm
    val: a soft knitted sweater
    test: a thick wool jumper
    test: a warm sweatshirt without buttons
Dress
    dress
    a summer dress
    a long dress without sleeves
    a gown for a party
    one piece from the shoulders down to the knees
    an elegant evening dress, narrow at the waist
    a sleeveless frock with a wide skirt
    a woman's dress that falls below the knees
    val: an evening gown
    test: a sleeveless party dress
    test: an elegant gown, narrow at the waist, with a wide skirt
Coat
    coat
    a winter coat
    a warm coat with long sleeves
    a long jacket with buttons down the front
    an overcoat to wear above everything else in the cold
    a padded jacket with a zip and pockets
    a heavy parka with a hood
    outdoor clothing that opens at the front, for wind and rain
    val: a heavy coat for the cold
    test: a warm jacket with pockets and long sleeves
    test: an overcoat with buttons for winter
Sandal
    sandals
    an open sandal
    a shoe with straps for the beach
    a summer shoe that shows the toes
    flip-flops
    a high-heeled sandal with thin straps
    open footwear for hot days
    a flat sole held by a few strips of leather
    val: a flat sandal with straps
    test: an open summer shoe with thin straps
    test: beach footwear that shows the toes
Shirt
    shirt
    a shirt with a collar
    a button-down shirt for the office
    a long-sleeved blouse with cuffs
    a checked flannel shirt
    a thin blouse with buttons from the collar to the hem
    a formal shirt to wear with a tie
    a fine shirt, worn under a suit
    val: an office shirt with cuffs
    test: a formal blouse with a collar
    test: a flannel shirt with buttons
Sneaker
    sneaker
    sneakers
    a running shoe
    a low sports shoe with laces
    trainers, shoes for the gym
    a flat canvas shoe with a rubber sole
    a casual shoe for walking and for sports
    what runners and tennis players wear on their feet
    val: a canvas sneaker with laces
    test: a sports shoe for running
    test: gym shoes with a rubber sole
Bag
    bag
    a handbag
    a leather handbag with a handle
    a shoulder bag with a long strap
    a purse to carry money and keys
    a small clutch for the evening
    a big shopping bag or a backpack
    something to carry things in, held by its handles
    val: a big leather bag
    test: a small purse with a strap
    test: a handbag to carry keys and money in
Ankle boot
    ankle boot
    boots
    a leather boot that reaches above the ankle
    a high shoe for autumn and winter
    a boot with a heel and a zip at the side
    sturdy footwear that covers the ankle
    a pair of short boots with laces
    a winter boot with a thick sole
    val: a short leather boot
    test: a sturdy boot with a heel
    test: high winter footwear that covers the ankle
"""

ANIMALS = """
dog
    a dog
    a puppy
    a dog on a leash
    man's best friend, wagging its tail
    a barking dog with floppy ears
    a hound running across a lawn
    a shepherd dog that guards the house
    a small pet that is walked in the park
    val: a puppy on a lawn
    test: a barking pet, wagging its tail
    test: a hound on a leash in the park
cat
    a cat
    a kitten
    a cat asleep on a sofa
    a tabby cat with whiskers
    a purring pet with soft fur
    a black cat with green eyes
    a kitten playing with a ball of wool
    a quiet hunter of mice with sharp claws
    val: a black kitten
    test: a purring tabby on a sofa
    test: a soft pet with whiskers and sharp claws
horse
    a horse
    a pony
    a foal beside its mother
    a brown horse galloping through a field
    a rider on horseback
    a stallion with a long mane
    an animal with hooves, saddled for a ride
    a white mare in a stable
    val: a galloping stallion
    test: a brown pony with a long mane
    test: a mare and her foal in a field
elephant
    an elephant
    an elephant with big ears
    a huge grey animal with a trunk
    a baby elephant beside its mother
    an elephant bathing in a river
    tusks of ivory and a wrinkled skin
    the largest animal on land
    a herd of elephants in the savanna
    val: a baby elephant in a river
    test: a grey giant with tusks and a trunk
    test: a herd with big ears in the savanna
butterfly
    a butterfly
    a butterfly on a flower
    a colourful insect with four wings
    a monarch with orange and black wings
    spread wings full of spots
    an insect that was a caterpillar
    a moth resting on a leaf
    a thin body between two pairs of bright wings
    val: an insect on a flower
    test: bright orange wings with spots
    test: a colourful moth on a flower
chicken
    a chicken
    a hen
    a rooster with a red comb
    a hen with her chicks
    a bird on a farm that lays eggs
    a crowing cock
    poultry pecking grain in a yard
    a brown hen with feathers and a beak
    val: a rooster in a yard
    test: a farm bird with a red comb
    test: a hen pecking in the yard
cow
    a cow
    a cow on a meadow
    cattle grazing
    a black and white cow that gives milk
    a bull with horns
    a calf drinking from its mother
    a dairy cow in a barn
    a heavy farm animal that chews grass
    val: a calf on a meadow
    test: dairy cattle in a barn
    test: a bull grazing beside a calf
sheep
    a sheep
    a lamb
    a flock of sheep
    a woolly animal on a hill
    a ram with curled horns
    a white fleece before shearing
    a ewe with two lambs
    a shepherd's flock on a green pasture
    val: a lamb on a pasture
    test: a woolly ram
    test: a flock with white fleece on a hill
spider
    a spider
    a spider in its web
    a tarantula
    a hairy creature with eight legs
    a web with drops of dew
    an arachnid waiting for flies
    a small black spider on a wall
    something with many eyes that spins silk
    val: a hairy spider on a wall
    test: eight legs in the middle of a web
    test: a black tarantula with many eyes
squirrel
    a squirrel
    a red squirrel
    a squirrel eating a nut
    a rodent with a bushy tail
    a grey squirrel on a branch
    a small animal that climbs trees and hides acorns
    a chipmunk with stripes on its back
    a furry climber in the park with a nut in its paws
    val: a squirrel on a branch
    test: a rodent eating acorns
    test: a furry climber with a bushy tail
"""
