# The server image: built from source, run as a user without rights, checked by the binary itself.
FROM rust:1.95-bookworm AS build
WORKDIR /build
# What .dockerignore lets through: manifest, lock file, sources.
COPY . .
RUN cargo build --release --locked --bin session-store

FROM debian:bookworm-slim
# Certificates for databases and model APIs that are reached with TLS.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /data --create-home --shell /usr/sbin/nologin session-store
COPY --from=build /build/target/release/session-store /usr/local/bin/session-store
USER session-store
WORKDIR /data
VOLUME /data
# Inside the container every interface, or nothing could be published. The server refuses that without
# SESSION_STORE__AUTH__API_KEY, unless it is started with --insecure.
ENV SESSION_STORE__SERVER__LISTEN=0.0.0.0:8123 \
    SESSION_STORE__DATABASE__URL=sqlite:///data/session-store.db
EXPOSE 8123
# Longer than server.shutdown_grace_secs is what `docker stop --time` should allow.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=6 CMD ["session-store", "healthcheck", "--insecure"]
ENTRYPOINT ["session-store"]
CMD ["serve"]
