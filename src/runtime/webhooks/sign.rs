//! Signatures of the Standard Webhooks specification: HMAC-SHA256 over id, time and body.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// Secrets that bodies are signed with; several while one replaces another. Never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct WebhookSecrets(Vec<Vec<u8>>);

impl WebhookSecrets {
    /// Reads secrets separated by spaces: `whsec_` and the base64 of 24 to 64 bytes. The error is the rule.
    pub fn parse(text: &str) -> Result<WebhookSecrets, &'static str> {
        const RULE: &str = "must be whsec_ followed by the base64 of 24 to 64 bytes; several are separated by spaces";
        let secrets = text.split_whitespace().map(|secret| {
            let bytes = secret.strip_prefix("whsec_").and_then(|encoded| STANDARD.decode(encoded).ok());
            bytes.filter(|bytes| (24..=64).contains(&bytes.len())).ok_or(RULE)
        });
        secrets.collect::<Result<_, _>>().map(WebhookSecrets)
    }

    /// The header `webhook-signature`; `None` without a secret.
    pub(super) fn sign(&self, id: &str, timestamp: i64, body: &str) -> Option<String> {
        let signatures: Vec<String> = self
            .0
            .iter()
            .filter_map(|secret| {
                // HMAC takes keys of any length.
                let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
                mac.update(format!("{id}.{timestamp}.").as_bytes());
                mac.update(body.as_bytes());
                Some(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
            })
            .collect();
        (!signatures.is_empty()).then(|| signatures.join(" "))
    }
}

impl fmt::Debug for WebhookSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebhookSecrets({} of them)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn signatures_are_those_of_the_specification() {
        // The example of the specification's own libraries.
        let secrets = WebhookSecrets::parse(SECRET).expect("valid");
        let signature = secrets.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signature.as_deref(), Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="));
        let two = WebhookSecrets::parse(&format!("{SECRET} {SECRET}")).expect("valid");
        assert_eq!(two.sign("a", 1, "b").map(|header| header.split(' ').count()), Some(2));
        assert_eq!(WebhookSecrets::default().sign("a", 1, "b"), None);
    }

    #[test]
    fn secrets_are_checked_and_never_printed() {
        for bad in ["secret", "whsec_", "whsec_!!", "whsec_c2hvcnQ="] {
            assert!(WebhookSecrets::parse(bad).is_err(), "{bad}");
        }
        let secrets = WebhookSecrets::parse(SECRET).expect("valid");
        assert_eq!(format!("{secrets:?}"), "WebhookSecrets(1 of them)");
        assert_eq!(WebhookSecrets::parse(""), Ok(WebhookSecrets::default()));
    }
}
