# docker build --tag unicoord-atlas:0.1.0-cpu .
# docker build --build-arg VARIANT=cuda --tag unicoord-atlas:0.1.0-cuda .
ARG PYTHON=3.12.11-slim-bookworm

FROM python:${PYTHON} AS build
ARG VARIANT=cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
WORKDIR /src
RUN python -m venv /opt/unicoord-atlas
# PyTorch alone, first: by far the largest layer, and the only one that differs between variants.
COPY constraints.txt ./
# PyPI has the CUDA build; of two equal versions pip takes the one that says +cpu.
RUN case "${VARIANT}" in \
        cpu) index=https://download.pytorch.org/whl/cpu ;; \
        cuda) index=https://pypi.org/simple ;; \
        *) echo "VARIANT=${VARIANT}: it is cpu or cuda" >&2; exit 64 ;; \
    esac \
    && /opt/unicoord-atlas/bin/pip install --constraint constraints.txt --extra-index-url "${index}" torch
COPY pyproject.toml README.md LICENSE ./
COPY unicoord_atlas ./unicoord_atlas
COPY loaders ./loaders
COPY jobs ./jobs
RUN /opt/unicoord-atlas/bin/pip install --constraint constraints.txt '.[dask,gene-sets,graph,s3]' \
    && /opt/unicoord-atlas/bin/python -m compileall -q /opt/unicoord-atlas/lib \
    && /opt/unicoord-atlas/bin/pip uninstall --yes pip

FROM python:${PYTHON}
ARG VARIANT=cpu
LABEL org.opencontainers.image.title="unicoord-atlas" \
      org.opencontainers.image.licenses="BSD-3-Clause" \
      unicoord-atlas.variant="${VARIANT}"
# The root file system is read-only: what libraries write goes to /cache, temporary files to /tmp.
ENV PATH=/opt/unicoord-atlas/bin:$PATH \
    HOME=/cache \
    XDG_CACHE_HOME=/cache \
    MPLCONFIGDIR=/cache/matplotlib \
    NUMBA_CACHE_DIR=/cache/numba \
    DASK_TEMPORARY_DIRECTORY=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN groupadd --gid 10001 unicoord \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /cache --shell /usr/sbin/nologin unicoord \
    && install --directory --owner 10001 --group 10001 /cache /data
COPY --from=build /opt/unicoord-atlas /opt/unicoord-atlas
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["unicoord-atlas"]
CMD ["--help"]
