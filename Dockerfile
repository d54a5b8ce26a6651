# wsiseg for CPUs. Map slides with a read-only root, without a network, as a user that owns nothing but OUT:
#   docker build -t wsiseg .
#   docker run --rm --read-only --network none --user "$(id -u)" --cpus 4 --memory 8g \
#     -v /data/slides:/slides:ro -v /data/maps:/maps wsiseg predict /slides --out /maps
FROM python:3.12-slim AS built
COPY . /source
RUN python -m venv /opt/wsiseg \
 && /opt/wsiseg/bin/pip install --no-cache-dir /source

FROM python:3.12-slim
COPY --from=built /opt/wsiseg /opt/wsiseg
ENV PATH=/opt/wsiseg/bin:$PATH PYTHONDONTWRITEBYTECODE=1 WSISEG_OFFLINE=1
USER 65532:65532
WORKDIR /maps
ENTRYPOINT ["wsiseg"]
CMD ["doctor"]
