# Faregate: one image that serves (the default), migrates (`migrate`) and simulates OpenRouter (`simulator`).
#
#   docker build -t faregate:local .
#
# BASE is any image with glibc and Python 3.11 or newer as python3, with venv. For builds that are the same every time
# add its digest: docker.io/library/python:3.12.12-slim-bookworm@sha256:<digest>
ARG BASE=docker.io/library/python:3.12.12-slim-bookworm

FROM ${BASE} AS build
WORKDIR /build
# Two environments: the one that builds stays here, the one that is shipped has no pip.
COPY requirements.lock requirements-build.lock ./
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements-build.lock \
    && python3 -m venv --without-pip /opt/faregate \
    && /opt/build/bin/pip --python /opt/faregate/bin/python3 install --no-cache-dir --require-hashes \
        --only-binary :all: -r requirements.lock
# Nothing is fetched from here on. The program goes beside the packages, for a layer of its own: who has an older image
# has to fetch little else.
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /opt/build/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/build/bin/pip --python /opt/faregate/bin/python3 install --no-index --no-deps --root /program dist/*.whl

FROM ${BASE}
# Numbers, and always the same ones: volumes belong to them, and Kubernetes can see that they are not root.
RUN groupadd --gid 10001 faregate \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin faregate \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/faregate
COPY --from=build /opt/faregate /opt/faregate
COPY --from=build /program/opt/faregate /opt/faregate

ENV PATH=/opt/faregate/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DATA_DIR=/var/lib/faregate
# The only folder that is written to. A volume, so that --read-only needs nothing else.
VOLUME /var/lib/faregate
# Not DATA_DIR: a .env that lies where it is started would be read.
WORKDIR /
USER 10001:10001
EXPOSE 8080

# 503 while it cannot serve. http.client, since urllib would ask a proxy of the environment.
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('PORT') or 8080), timeout=4); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]

ENTRYPOINT ["faregate"]
CMD ["serve"]

ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Faregate" \
      org.opencontainers.image.description="An AI control plane between Open WebUI and OpenRouter" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
