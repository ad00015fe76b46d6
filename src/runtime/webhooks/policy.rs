//! Where webhooks may go. A URL is looked at when a run asks for it; an address is looked at when a connection is made,
//! after the name was resolved, and the connection goes to that very address: a name that resolves to something else a
//! moment later (DNS rebinding) gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// The longest URL (contract section 3.7).
const MAX_URL_BYTES: usize = 4096;

/// What is allowed; the defaults are those of `config.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WebhookPolicy {
    /// This machine and private networks, too. Never link-local addresses, where clouds serve credentials.
    pub allow_private: bool,
    pub https_only: bool,
    /// Empty: every host.
    pub allowed_hosts: Vec<AllowedHost>,
}

/// A host that webhooks may go to: `hooks.example.com`, `*.example.com`, either with `:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedHost {
    host: String,
    with_subdomains: bool,
    port: Option<u16>,
}

impl AllowedHost {
    /// Reads hosts separated by spaces or commas. The error is the bad one.
    pub fn parse_list(text: &str) -> Result<Vec<AllowedHost>, String> {
        let entries = text.split([' ', ',']).filter(|entry| !entry.is_empty());
        entries.map(|entry| AllowedHost::parse(entry).ok_or_else(|| entry.to_owned())).collect()
    }

    fn parse(entry: &str) -> Option<AllowedHost> {
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (entry, None),
        };
        let (with_subdomains, host) = host.strip_prefix("*.").map_or((false, host), |domain| (true, domain));
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        let is_legal = !host.is_empty() && host.chars().all(legal);
        is_legal.then(|| AllowedHost { host: host.to_ascii_lowercase(), with_subdomains, port })
    }

    fn covers(&self, host: &str, port: Option<u16>) -> bool {
        let below = || host.strip_suffix(&self.host).is_some_and(|rest| rest.ends_with('.'));
        (if self.with_subdomains { below() } else { host == self.host }) && (self.port.is_none() || self.port == port)
    }
}

impl WebhookPolicy {
    /// Reads a URL that a webhook may be sent to. The error is the rule it breaks.
    pub fn check(&self, text: &str) -> Result<Url, String> {
        if text.is_empty() || text.len() > MAX_URL_BYTES {
            return Err(format!("expected 1 to {MAX_URL_BYTES} characters"));
        }
        // The parser also folds the spellings of addresses: decimal, octal, hexadecimal.
        let url = Url::parse(text).map_err(|_| "expected an absolute http or https URL".to_owned())?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("expected an absolute http or https URL".to_owned());
        }
        if self.https_only && url.scheme() != "https" {
            return Err("only https is allowed (webhooks.https_only)".to_owned());
        }
        let host = url.host_str().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        let is_local_name = host == "localhost" || host.ends_with(".localhost");
        let is_blocked = match address {
            Some(address) => !self.allows(address),
            None => is_local_name && !self.allow_private,
        };
        if is_blocked || host.is_empty() {
            return Err(
                "the host is this machine or a private network, which webhooks must not reach (webhooks.allow_private)"
                    .to_owned(),
            );
        }
        let port = url.port_or_known_default();
        if !self.allowed_hosts.is_empty() && !self.allowed_hosts.iter().any(|allowed| allowed.covers(&host, port)) {
            return Err("the host or port is not allowed (webhooks.allowed_hosts)".to_owned());
        }
        Ok(url)
    }

    /// Whether a connection may go to an address.
    pub fn allows(&self, address: IpAddr) -> bool {
        match kind(address) {
            Kind::Public => true,
            Kind::Private => self.allow_private,
            Kind::Never => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Public,
    /// This machine, and networks that are not the internet.
    Private,
    /// No receiver is there under any setting: link-local addresses (metadata services), multicast, reserved ones.
    Never,
}

fn kind(address: IpAddr) -> Kind {
    match address {
        IpAddr::V4(address) => kind_v4(address),
        IpAddr::V6(address) => match embedded(address) {
            Some(inner) => kind_v4(inner),
            None => kind_v6(address),
        },
    }
}

fn kind_v4(address: Ipv4Addr) -> Kind {
    let [a, b, c, _] = address.octets();
    match (a, b, c) {
        // Link-local, and the metadata services that live elsewhere (Alibaba's, Azure's wire server).
        (169, 254, _) => Kind::Never,
        _ if address == Ipv4Addr::new(100, 100, 100, 200) || address == Ipv4Addr::new(168, 63, 129, 16) => Kind::Never,
        // This host, private networks, carrier-grade NAT.
        (0 | 10 | 127, ..) | (192, 168, _) => Kind::Private,
        (172, 16..=31, _) | (100, 64..=127, _) => Kind::Private,
        // Protocol assignments, documentation, 6to4 relays, benchmarks, multicast, reserved, broadcast.
        (192, 0, 0 | 2) | (192, 88, 99) | (198, 18..=19, _) | (198, 51, 100) | (203, 0, 113) => Kind::Never,
        (224..=255, ..) => Kind::Never,
        _ => Kind::Public,
    }
}

fn kind_v6(address: Ipv6Addr) -> Kind {
    let [first, second, ..] = address.segments();
    match first {
        _ if address == Ipv6Addr::LOCALHOST || address == Ipv6Addr::UNSPECIFIED => Kind::Private,
        // Unique local; AWS' metadata service lives there.
        0xfc00..=0xfdff if address.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] => Kind::Never,
        0xfc00..=0xfdff => Kind::Private,
        // Documentation, Teredo and other special ones inside the global range.
        0x2001 if second == 0xdb8 || second < 0x200 => Kind::Never,
        0x2000..=0x3fff => Kind::Public,
        // Link-local, multicast, and what is not assigned.
        _ => Kind::Never,
    }
}

/// The IPv4 address inside an IPv6 one: mapped, compatible, translated (NAT64) or 6to4.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = address.segments();
    let of = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match segments {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(of(high, low)),
        // Not the loopback and the unspecified address, which are IPv6's own.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => Some(of(high, low)),
        [0x2002, high, low, ..] => Some(of(high, low)),
        _ => None,
    }
}

/// Resolves names and keeps the addresses that are allowed; the client connects to those.
#[derive(Debug, Clone)]
pub(super) struct Guarded(pub(super) Arc<WebhookPolicy>);

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = Arc::clone(&self.0);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found.filter(|address| policy.allows(address.ip())).collect();
            if allowed.is_empty() {
                return Err("the host has no address that webhooks may reach".into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(policy: &WebhookPolicy, url: &str) -> bool {
        policy.check(url).is_err()
    }

    #[test]
    fn private_targets_are_refused_in_every_spelling() {
        let policy = WebhookPolicy::default();
        for url in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0177.0.0.1/",
            "http://localhost:8123/",
            "http://LOCALHOST./",
            "http://a.localhost/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[64:ff9b::a00:1]/",
            "http://[2002:7f00:1::]/",
            "http://0.0.0.0/",
            "http://10.1.2.3/",
            "http://172.31.0.1/",
            "http://192.168.1.1/",
            "http://100.64.0.1/",
            "http://169.254.169.254/latest/meta-data",
            "http://[fe80::1]/",
            "http://[fd00::1]/",
            "http://224.0.0.1/",
            "http://255.255.255.255/",
            "",
            "/relative",
            "ftp://example.com/",
            "unix:/var/run/docker.sock",
            "http://",
        ] {
            assert!(refused(&policy, url), "{url}");
        }
        for url in
            ["https://example.com/hook?x=1", "http://8.8.8.8:8080/", "http://[2606:4700::1]/", "https://172.32.0.1"]
        {
            assert!(!refused(&policy, url), "{url}");
        }
        assert!(refused(&policy, &format!("https://example.com/{}", "x".repeat(4096))));
    }

    #[test]
    fn metadata_services_stay_out_of_reach_when_private_targets_are_allowed() {
        let policy = WebhookPolicy { allow_private: true, ..WebhookPolicy::default() };
        for url in
            ["http://127.0.0.1:9/", "http://localhost/", "http://10.0.0.1/", "http://[fd00::1]/", "http://[::1]/"]
        {
            assert!(!refused(&policy, url), "{url}");
        }
        for url in
            ["http://169.254.169.254/", "http://[fd00:ec2::254]/", "http://[fe80::1]/", "http://100.100.100.200/"]
        {
            assert!(refused(&policy, url), "{url}");
        }
    }

    #[test]
    fn hosts_ports_and_schemes_can_be_narrowed() {
        let allowed_hosts = AllowedHost::parse_list("hooks.example.com, *.corp.example:8443").expect("valid");
        let policy = WebhookPolicy { https_only: true, allowed_hosts, ..WebhookPolicy::default() };
        for url in ["https://hooks.example.com/", "https://hooks.example.com:1/", "https://a.b.corp.example:8443/"] {
            assert!(!refused(&policy, url), "{url}");
        }
        for url in [
            "http://hooks.example.com/",
            "https://example.com/",
            "https://xhooks.example.com/",
            "https://corp.example:8443/",
            "https://evilcorp.example:8443/",
            "https://a.corp.example/",
        ] {
            assert!(refused(&policy, url), "{url}");
        }
        assert_eq!(AllowedHost::parse_list("a b:x"), Err("b:x".to_owned()));
        assert_eq!(AllowedHost::parse_list(""), Ok(Vec::new()));
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_a_private_address_is_not_connected_to() {
        let name = || "localhost".parse::<Name>().expect("a name");
        assert!(Guarded(Arc::default()).resolve(name()).await.is_err());
        let open = WebhookPolicy { allow_private: true, ..WebhookPolicy::default() };
        assert!(Guarded(Arc::new(open)).resolve(name()).await.is_ok());
    }
}
