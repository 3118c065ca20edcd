# Images of baal_hf:
#
#   docker build -t baal .                            # the package, the scripts and the tests
#   docker build --target base_baal -t baal-dev .     # what they need; mount a checkout at /baal to work on it
#   docker build --build-arg TORCH_INDEX=URL -t baal .    # torch from another index, such as that of its CPU builds
#
#   docker run --rm --gpus all -v "$PWD/outputs:/baal/outputs" baal \
#       python3 scripts/experiments/vgg_mcdropout_cifar10.py    # outputs is a folder that user 1000 may write to
#   docker run --rm -it -v "$PWD:/baal" baal-dev python3 -m pytest

ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS base_baal

# Where torch is looked for beside pip's own index: of two builds of one version pip takes the one with a local part,
# such as "+cpu".
ARG TORCH_INDEX=

# A home of its own for the caches of datasets and models, and a place to write outputs to.
RUN useradd --create-home --uid 1000 baal && mkdir /baal && chown baal:baal /baal
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /baal

# torch alone comes first: it is the largest part, and changes least.
COPY --chown=baal:baal scripts/constraints.txt scripts/constraints.txt
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        --constraint scripts/constraints.txt torch

# What baal_hf needs, without its code: an editable installation finds the code that the next stage, or a mount, puts here.
COPY --chown=baal:baal pyproject.toml README.md LICENSE ./
COPY --chown=baal:baal baal_hf/__init__.py baal_hf/__init__.py
RUN pip install --no-cache-dir --editable ".[test]" --constraint scripts/constraints.txt

USER 1000
CMD ["python3"]

FROM base_baal AS baal

COPY --chown=baal:baal . .
CMD ["python3", "-c", "import baal_hf; print('baal_hf', baal_hf.__version__)"]
