# One image for every service: the SuperLink, SuperNodes, further workers, rq-dashboard.
# docker build -t fedq . ; further packages for your apps: --build-arg PACKAGES="torch==2.* pandas"

FROM python:3.12-slim AS build
ARG EXTRAS="sign,dashboard,demo,dtypes"
ARG PACKAGES=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/fedq
COPY pyproject.toml setup.py README.md LICENSE /src/
COPY apps /src/apps
COPY relay /src/relay
COPY node /src/node
COPY cli /src/cli
COPY examples /src/examples
RUN /opt/fedq/bin/pip install "/src[${EXTRAS}]" ${PACKAGES}

FROM python:3.12-slim
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/fedq --shell /usr/sbin/nologin fedq
COPY --from=build /opt/fedq /opt/fedq
ENV PATH=/opt/fedq/bin:$PATH PYTHONUNBUFFERED=1 HOME=/var/lib/fedq
USER fedq
WORKDIR /var/lib/fedq
ENTRYPOINT []
CMD ["fedq", "--help"]
