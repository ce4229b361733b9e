# The service in a container; see "Serving" in README.md. `docker compose up` adds PostgreSQL and HTTPS.
FROM python:3.13-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    RECTRIO_OUTPUTS=/outputs \
    RECTRIO_DATA=/outputs/data \
    RECTRIO_WEIGHTS=/outputs/weights \
    HF_HOME=/outputs/weights/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib

# PyTorch for processors alone: the wheels of PyPI bring 4 GB of CUDA.
WORKDIR /opt/rectrio
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY rectrio_lib rectrio_lib
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    --constraint requirements.lock ".[app,postgres]"

RUN useradd --uid 10001 --create-home rectrio \
    && install --directory --owner rectrio --mode 0700 /outputs \
    && install --directory /images
USER 10001
WORKDIR /outputs
VOLUME ["/outputs", "/images"]

EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["rectrio"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
