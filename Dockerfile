# The images: `--target server`, `server-gpu` or `exporter`. Pin the bases by their digests:
#   --build-arg PYTHON=docker.io/library/python:3.11-slim-bookworm@sha256:...
# docker, podman and buildah build it alike; `make images` does so without any of their registries.
ARG PYTHON=docker.io/library/python:3.11-slim-bookworm
ARG CUDA=docker.io/nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

# --- what is installed, by a stage whose tools stay behind ---------------------------------------------------
FROM ${PYTHON} AS installed
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
RUN python3 -m venv /opt/forwardpass
COPY constraints.txt pyproject.toml README.md ./
# What it depends on by itself: this layer stays while only the code changes.
COPY server/__init__.py server/
# Beside the engine: text models, callers with tokens, spans. Remote repositories want theirs as well: s3, gs, az, http.
ARG EXTRAS=cpu,text,auth,tracing
RUN /opt/forwardpass/bin/pip install -c constraints.txt ".[${EXTRAS}]"
# What libraries ask for and a server never uses goes again: downloads from a hub (tokenizers), coloured help (typer), and
# what Triton's own client wants for itself, whose messages alone are used here.
ARG UNUSED="huggingface_hub hf_xet filelock tqdm httpx2 httpcore2 truststore rich pygments markdown_it_py mdurl ml_dtypes python_rapidjson"
RUN apt-get update -q && apt-get install -q --yes --no-install-recommends binutils \
 && /opt/forwardpass/bin/pip uninstall --yes --quiet ${UNUSED} \
 && cd /opt/forwardpass/lib/python3*/site-packages \
 # Sources and tests of libraries, and parts of ONNX Runtime that convert models.
 && find . -type d \( -name tests -o -name test \) -prune -exec rm -r {} + \
 && find . -type f \( -name '*.py[ix]' -o -name '*.pxd' -o -name '*.c' -o -name '*.h' -o -name '*.hpp' -o -name '*.a' \) -delete \
 && find . -name '*.so' -not -path '*.libs/*' -exec strip --strip-unneeded {} + \
 && rm -rf onnxruntime/transformers onnxruntime/tools onnxruntime/quantization onnxruntime/datasets numpy/f2py numpy/distutils \
 # ONNX Runtime a second time, for programs in C: Python's module has it in itself, and of the extras genai alone looks for it.
 && { [ -d onnxruntime_genai ] || rm -f onnxruntime/capi/libonnxruntime.so.*; }
COPY server server
RUN /opt/forwardpass/bin/pip install --no-deps --force-reinstall .
# The root is read-only: what is not compiled here is compiled at every start.
RUN /opt/forwardpass/bin/pip uninstall --yes --quiet setuptools pip \
 && PYTHONDONTWRITEBYTECODE= /opt/forwardpass/bin/python3 -m compileall -q /opt/forwardpass/lib

# --- server: embedded ONNX Runtime on CPUs, or the gateway in front of Tritons -------------------------------
FROM ${PYTHON} AS server
COPY --from=installed /opt/forwardpass /opt/forwardpass
ENV PATH=/opt/forwardpass/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    FORWARDPASS_HOST=0.0.0.0 FORWARDPASS_METRICS__HOST=0.0.0.0 FORWARDPASS_REPOSITORY__PATH='["/models"]'
EXPOSE 8000 8001 8002
USER 10001:10001
WORKDIR /tmp
STOPSIGNAL SIGTERM
# Kubernetes has probes of its own and does not look at this.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
ENTRYPOINT ["forwardpass"]
CMD ["serve"]

# --- server-gpu: the same on CUDA, of a base with cuDNN and Python 3.11 or later: Ubuntu 24.04 has 3.12, 22.04 has 3.10 ---
FROM ${CUDA} AS python-gpu
RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*

FROM python-gpu AS installed-gpu
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
RUN python3 -m venv /opt/forwardpass
COPY constraints.txt pyproject.toml README.md ./
COPY server server
ARG EXTRAS_GPU=gpu,text,auth,tracing,http
# From 1.27 on its wheels are for CUDA 13, those before for CUDA 12.
ARG ONNXRUNTIME=onnxruntime-gpu>=1.27
# One module `onnxruntime`, of one package: the constraints name the CPU's.
RUN { grep -v '^onnxruntime==' constraints.txt; echo "${ONNXRUNTIME}"; } > gpu.txt \
 && /opt/forwardpass/bin/pip install --only-binary :all: --no-binary forwardpass -c gpu.txt ".[${EXTRAS_GPU}]" \
 && /opt/forwardpass/bin/pip uninstall --yes --quiet setuptools pip \
 && PYTHONDONTWRITEBYTECODE= /opt/forwardpass/bin/python3 -m compileall -q -j 0 /opt/forwardpass/lib
# Of another CUDA or cuDNN than the base's it would find no libraries, which no server says before it has a GPU.
RUN /opt/forwardpass/bin/python3 -c "import os, re, sys; from importlib.metadata import requires; \
wanted = re.search(r'nvidia-cudnn-cu(\d+)~=(\d+)', ' '.join(requires('onnxruntime-gpu'))).groups(); \
base = tuple(os.environ.get(name, '').split('.')[0] for name in ('CUDA_VERSION', 'NV_CUDNN_VERSION')); \
base in (wanted, ('', '')) or sys.exit('ONNX Runtime is for CUDA %s and cuDNN %s, the base has %s and %s: another CUDA or ONNXRUNTIME' % (*wanted, *base))"

FROM python-gpu AS server-gpu
COPY --from=installed-gpu /opt/forwardpass /opt/forwardpass
ENV PATH=/opt/forwardpass/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    FORWARDPASS_HOST=0.0.0.0 FORWARDPASS_METRICS__HOST=0.0.0.0 FORWARDPASS_REPOSITORY__PATH='["/models"]' \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 8000 8001 8002
USER 10001:10001
WORKDIR /tmp
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
ENTRYPOINT ["forwardpass"]
CMD ["serve"]

# --- exporter: training, for a job that writes a model repository -----------------------------------------------
FROM ${PYTHON} AS installed-exporter
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/forwardpass
COPY constraints.txt pyproject.toml README.md ./
COPY server server
COPY exporter exporter
# An index that has PyTorch for CPUs alone spares several GB: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH_INDEX=
RUN /opt/forwardpass/bin/pip install ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} -c constraints.txt ".[cpu,exporter]" \
 && /opt/forwardpass/bin/pip uninstall --yes --quiet pip

FROM ${PYTHON} AS exporter
COPY --from=installed-exporter /opt/forwardpass /opt/forwardpass
ENV PATH=/opt/forwardpass/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
# Mount a volume here: runs and models are written below it.
WORKDIR /work
HEALTHCHECK NONE
ENTRYPOINT ["forwardpass"]
CMD ["train", "--help"]
