# Submitting: the pipeline's steps and `nanochat submit`, without torch. `images/README.md` has the arguments.
#   make wheels && docker build -f images/submit.Dockerfile -t nanochat/submit .
ARG BASE=debian:bookworm-slim

# Everything from the lock that is not ours: this layer changes with the lock, not with the code.
FROM ${BASE} AS deps
USER 0
RUN apt-get update -q \
 && apt-get install -yq --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/cache/apt/* /var/lib/apt/lists/*
WORKDIR /build
COPY images/tools/install.py images/tools/slim.py images/tools/
COPY pyproject.toml requirements.lock ./
ARG EXCLUDE=
ARG INDEX_URL=
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/uv \
    python3 images/tools/install.py /opt/venv --extra kubernetes --exclude "${EXCLUDE}" --index-url "${INDEX_URL}" \
 && /opt/venv/bin/python images/tools/slim.py /opt/venv --headers

# Our platform wheel (`make wheels`), laid out to be copied over the environment. No tokenizer: nothing here trains.
FROM deps AS app
COPY dist/ dist/
RUN /opt/venv/bin/python -m pip install --quiet --no-index --no-deps --prefix /opt/app dist/nanochat_platform-*.whl

FROM ${BASE}
USER 0
RUN apt-get update -q \
 && apt-get install -yq --no-install-recommends ca-certificates python3 tini \
 && rm -rf /var/cache/apt/* /var/lib/apt/lists/* \
 && groupadd --gid 10001 nanochat \
 && useradd --uid 10001 --gid 10001 --create-home --shell /bin/bash nanochat \
 && install -d -o 10001 -g 10001 /data
COPY --from=deps /opt/venv /opt/venv
COPY --from=app /opt/app /opt/venv
COPY images/tools/sbom.py /usr/share/nanochat/sbom.py
ARG VERSION=0.1.0
ARG SOURCE_DATE_EPOCH=
RUN /opt/venv/bin/python /usr/share/nanochat/sbom.py /usr/share/nanochat/sbom.json \
      --name nanochat-submit --version "${VERSION}"
# The root may be read-only: whatever is written at run time goes to /tmp, the home or the volume.
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/home/nanochat \
    NANOCHAT_HOME=/data \
    XDG_CACHE_HOME=/tmp/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
ARG REVISION=unknown
ARG CREATED=
LABEL org.opencontainers.image.title="nanochat submit" \
      org.opencontainers.image.description="Submits and follows nanochat's training jobs: the steps of the pipeline" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["tini", "--"]
CMD ["nanochat", "--help"]
