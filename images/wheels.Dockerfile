# Our two wheels without Rust or Python on the host; what `make wheels` does with both. Into dist/ of the checkout:
#   docker build -f images/wheels.Dockerfile --output dist .
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
USER 0
# Debian keeps a current Rust beside the release's own under names that end in -web, for its browsers.
RUN apt-get update -q \
 && apt-get install -yq --no-install-recommends \
      ca-certificates cargo-web gcc libc6-dev python3 python3-venv rustc-web \
 && rm -rf /var/cache/apt/* /var/lib/apt/lists/*
WORKDIR /build
COPY images/tools/install.py images/tools/
COPY pyproject.toml requirements.lock ./
ARG INDEX_URL=
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/uv \
    python3 images/tools/install.py /opt/build --index-url "${INDEX_URL}" --package hatchling --package maturin
COPY rustbpe/ rustbpe/
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cargo/registry \
    if [ -f /run/secrets/ca ]; then export CARGO_HTTP_CAINFO=/run/secrets/ca; fi \
 && PATH="/opt/build/bin:${PATH}" maturin build --release --locked -m rustbpe/Cargo.toml -o dist
COPY LICENSE README.md ./
COPY nanochat/ nanochat/
COPY platform/ platform/
RUN /opt/build/bin/python -m hatchling build -t wheel -d dist

FROM scratch
COPY --from=build /build/dist/ /
