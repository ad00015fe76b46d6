//! A receiver of webhooks on a free port: it answers as told, checks signatures by itself, and passes on what came.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::Sha256;
use tokio::sync::mpsc;

/// A secret of the form that settings want.
pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// One request that arrived.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Delivery {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).expect("a webhook is JSON")
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_else(|| panic!("no {name}: {self:?}"))
    }

    /// Fails unless the signature is that of [`SECRET`] over id, time and body.
    pub(crate) fn verify(&self) {
        let key = STANDARD.decode(SECRET.trim_start_matches("whsec_")).expect("base64");
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("a key");
        let signed = format!("{}.{}.{}", self.header("webhook-id"), self.header("webhook-timestamp"), self.text);
        mac.update(signed.as_bytes());
        let (version, signature) = self.header("webhook-signature").split_once(',').expect("a version");
        assert_eq!(version, "v1");
        mac.verify_slice(&STANDARD.decode(signature).expect("base64")).expect("the signature is right");
    }
}

/// The receiver; it ends with this value.
pub(crate) struct Receiver {
    pub(crate) url: String,
    deliveries: mpsc::UnboundedReceiver<Delivery>,
    answers: mpsc::UnboundedSender<u16>,
}

type Shared = (mpsc::UnboundedSender<Delivery>, std::sync::Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<u16>>>);

async fn receive(State((sender, answers)): State<Shared>, headers: HeaderMap, text: String) -> (StatusCode, HeaderMap) {
    // Told before it is answered, so that what a test sees has an outcome of its choice.
    let _ended = sender.send(Delivery { headers, text });
    let status = answers.lock().await.recv().await.unwrap_or(500);
    let mut headers = HeaderMap::new();
    headers.insert("location", "http://127.0.0.1:1/elsewhere".parse().expect("a header"));
    (StatusCode::from_u16(status).expect("a status"), headers)
}

impl Receiver {
    pub(crate) async fn start() -> Receiver {
        let (sender, deliveries) = mpsc::unbounded_channel();
        let (answers, told) = mpsc::unbounded_channel();
        let shared: Shared = (sender, std::sync::Arc::new(tokio::sync::Mutex::new(told)));
        let routes = Router::new().route("/hook", post(receive)).with_state(shared);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Receiver { url, deliveries, answers }
    }

    /// The status of the next answer that has none yet.
    pub(crate) fn answer(&self, status: u16) {
        self.answers.send(status).expect("the receiver runs");
    }

    /// The next delivery, whether answered or not.
    pub(crate) async fn next(&mut self) -> Delivery {
        let next = tokio::time::timeout(Duration::from_secs(60), self.deliveries.recv()).await;
        next.expect("a delivery in time").expect("the receiver runs")
    }

    /// Fails if something has arrived that nobody asked for.
    pub(crate) fn is_empty(&mut self) -> bool {
        self.deliveries.try_recv().is_err()
    }
}
