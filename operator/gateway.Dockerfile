# The gateway, the data plane in front of an endpoint's versions.
#
#   docker build -f operator/gateway.Dockerfile -t finetune-gateway .        # from the repository's root
#
# BASE_IMAGE is any Debian 12 with python3 (3.11 or newer), python3-venv and CA certificates. The stage `environment`
# holds what the lock file says and changes rarely; our code is a thin layer on it.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS environment
# The tests mount the machine's own cache here; otherwise it goes with the installer.
ARG UV_CACHE_DIR=/tmp/installer/cache
COPY requirements/uv.txt requirements/gateway.txt /tmp/requirements/
# The byte code is compiled here, since at run time the root file system is read-only.
RUN python3 -m venv /tmp/installer \
    && /tmp/installer/bin/pip install --quiet --no-cache-dir --require-hashes -r /tmp/requirements/uv.txt \
    && python3 -m venv --without-pip /opt/venv \
    && UV_CACHE_DIR=${UV_CACHE_DIR} UV_SYSTEM_CERTS=1 UV_LINK_MODE=copy \
       /tmp/installer/bin/uv pip sync --quiet --compile-bytecode --require-hashes \
       --python /opt/venv/bin/python /tmp/requirements/gateway.txt \
    && rm -rf /tmp/installer /tmp/requirements \
    && groupadd --gid 65532 finetune \
    && useradd --uid 65532 --gid 65532 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin finetune
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp

FROM environment
COPY operator/finetune_api /opt/finetune/finetune_api
COPY operator/finetune_http /opt/finetune/finetune_http
COPY operator/finetune_gateway /opt/finetune/finetune_gateway
RUN python -m compileall -q --invalidation-mode unchecked-hash /opt/finetune
ENV PYTHONPATH=/opt/finetune
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "finetune_gateway"]
