//! Stand-ins for what other branches add. At merge: delete this file and `mod shim` in `lib.rs`; in `app.rs` replace
//! `crate::shim::http` by `crate::http` and drop the import of `Loops`, whose methods are inherent there.

pub(crate) mod http {
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use crate::model::Durability;
    use crate::runtime::Runtime;

    pub(crate) struct ApiKey;

    impl ApiKey {
        pub(crate) fn new(_secret: &str) -> ApiKey {
            ApiKey
        }
    }

    #[derive(Default)]
    #[expect(dead_code, reason = "a stand-in")]
    pub(crate) struct HttpSettings {
        pub(crate) body_limit: usize,
        pub(crate) api_keys: Vec<ApiKey>,
        pub(crate) heartbeat: Duration,
        pub(crate) durability: Durability,
        pub(crate) shutdown: CancellationToken,
        pub(crate) check_timeout: Duration,
    }

    pub(crate) fn router(_runtime: Runtime, _settings: HttpSettings) -> axum::Router {
        axum::Router::new()
    }
}

/// The background loops of the runtime.
pub(crate) trait Loops {
    fn start(&self);
    async fn drain(&self);
}

impl Loops for crate::runtime::Runtime {
    fn start(&self) {}
    async fn drain(&self) {}
}
