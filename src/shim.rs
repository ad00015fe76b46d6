//! Stand-ins for modules that other branches add. At merge: delete this file, replace `crate::shim::` by `crate::`, and
//! drop the imports of the traits `Draw` and `Loops`, whose methods are inherent there.

pub(crate) mod graph {
    pub(crate) use crate::graph::Graph;

    /// All errors of one graph.
    #[derive(Debug)]
    pub struct BuildErrors(String);

    impl std::fmt::Display for BuildErrors {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(&self.0)
        }
    }

    impl std::error::Error for BuildErrors {}

    pub(crate) struct Registry(Vec<Graph>);

    impl Registry {
        pub(crate) fn new(
            graphs: impl IntoIterator<Item = Result<Graph, BuildErrors>>,
        ) -> Result<Registry, BuildErrors> {
            Ok(Registry(graphs.into_iter().collect::<Result<_, _>>()?))
        }

        pub(crate) fn get(&self, name: &str) -> Option<&Graph> {
            self.iter().find(|graph| graph.name() == name)
        }

        pub(crate) fn iter(&self) -> impl Iterator<Item = &Graph> {
            self.0.iter()
        }

        pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
            self.iter().map(Graph::name)
        }
    }

    pub(crate) struct Drawing;

    impl Drawing {
        pub(crate) fn mermaid(&self) -> String {
            String::new()
        }
    }

    pub(crate) trait Draw {
        fn drawing(&self, xray: usize) -> Drawing;
    }

    impl Draw for Graph {
        fn drawing(&self, _xray: usize) -> Drawing {
            Drawing
        }
    }
}

pub(crate) mod storage {
    pub(crate) mod connect {
        use std::time::Duration;

        use crate::storage::{SharedStorage, StorageError};

        #[expect(dead_code, reason = "a stand-in")]
        pub(crate) struct ConnectOptions {
            pub(crate) max_connections: u32,
            pub(crate) pgbouncer: bool,
            pub(crate) acquire_timeout: Duration,
            pub(crate) statement_timeout: Duration,
            pub(crate) sqlite_synchronous_full: bool,
        }

        pub(crate) async fn connect(_url: &str, _options: &ConnectOptions) -> Result<SharedStorage, StorageError> {
            Err(StorageError::Other("not merged".into()))
        }
    }
}

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
