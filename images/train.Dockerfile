# Training: one image for every rank of every stage. `images/README.md` has the arguments and the sizes.
#   make wheels && docker build -f images/train.Dockerfile --build-arg VARIANT=cuda -t nanochat/train .
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
ARG VARIANT=cuda
ARG EXCLUDE=
ARG INDEX_URL=
ARG TORCH_INDEX_URL=
ARG TORCH_SHA256=
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/uv \
    python3 images/tools/install.py /opt/venv --extra train --variant "${VARIANT}" --exclude "${EXCLUDE}" \
      --index-url "${INDEX_URL}" --torch-index-url "${TORCH_INDEX_URL}" --torch-sha256 "${TORCH_SHA256}" \
 && if [ "${VARIANT}" = cuda ]; then set --; else set -- --headers; fi \
 && /opt/venv/bin/python images/tools/slim.py /opt/venv "$@"

# Our two wheels (`make wheels`), laid out to be copied over the environment.
FROM deps AS app
COPY dist/ dist/
RUN /opt/venv/bin/python -m pip install --quiet --no-index --no-deps --prefix /opt/app dist/*.whl

FROM ${BASE}
USER 0
# cuda: Triton compiles its launchers with a C compiler, torch.compile the scalar parts of a step with a C++ one.
# cpu: none; the trainer says so in one line and computes without torch.compile.
ARG VARIANT=cuda
RUN apt-get update -q \
 && if [ "${VARIANT}" = cuda ]; then set -- g++ libc6-dev python3-dev; else set --; fi \
 && apt-get install -yq --no-install-recommends ca-certificates python3 tini "$@" \
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
      --name nanochat-train --version "${VERSION}"
# The root may be read-only: whatever is written at run time goes to /tmp, the home or the volume.
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/home/nanochat \
    NANOCHAT_HOME=/data \
    XDG_CACHE_HOME=/tmp/cache \
    TRITON_CACHE_DIR=/tmp/triton \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
ARG REVISION=unknown
ARG CREATED=
LABEL org.opencontainers.image.title="nanochat train" \
      org.opencontainers.image.description="Every stage of a nanochat run, from raw text to a chat model" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["tini", "--"]
CMD ["nanochat", "--help"]
