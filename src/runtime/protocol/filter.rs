//! Which events a subscription gets: channels, namespaces by prefix, and how deep below them.

use super::ProtocolEvent;
use crate::model::event::RESUME_GAP;

/// What a client can subscribe to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channel {
    Values,
    Updates,
    Messages,
    Tools,
    Lifecycle,
    Input,
    Tasks,
    Checkpoints,
    Custom,
    /// `custom:<name>`: custom events of that name.
    Named(String),
}

impl Channel {
    /// The names clients use, for errors.
    pub const NAMES: &'static str =
        "values, updates, messages, tools, lifecycle, input, tasks, checkpoints, custom, custom:<name>";

    pub fn parse(text: &str) -> Option<Channel> {
        Some(match text {
            "values" => Channel::Values,
            "updates" => Channel::Updates,
            "messages" => Channel::Messages,
            "tools" => Channel::Tools,
            "lifecycle" => Channel::Lifecycle,
            "input" => Channel::Input,
            "tasks" => Channel::Tasks,
            "checkpoints" => Channel::Checkpoints,
            "custom" => Channel::Custom,
            named => Channel::Named(named.strip_prefix("custom:").filter(|name| !name.is_empty())?.to_owned()),
        })
    }

    fn has(&self, event: &ProtocolEvent) -> bool {
        match self {
            Channel::Values => event.method == "values",
            Channel::Updates => event.method == "updates",
            Channel::Messages => event.method == "messages",
            Channel::Tools => event.method == "tools",
            Channel::Lifecycle => event.method == "lifecycle",
            Channel::Input => event.method == "input.requested",
            Channel::Tasks => event.method == "tasks",
            Channel::Checkpoints => event.method == "checkpoints",
            Channel::Custom => event.method == "custom",
            Channel::Named(name) => {
                event.method == "custom" && event.data.get("name").is_some_and(|given| given.as_str() == Some(name))
            }
        }
    }
}

/// A subscription's filter. Without namespaces, every graph's events pass.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub channels: Vec<Channel>,
    /// A segment without `:` stands for all tasks of that node.
    pub namespaces: Option<Vec<Vec<String>>>,
    /// Levels below the namespaces; below the root when there are none.
    pub depth: Option<usize>,
}

impl Filter {
    /// Everything.
    pub fn all() -> Filter {
        use Channel::{Checkpoints, Custom, Input, Lifecycle, Messages, Tasks, Tools, Updates, Values};
        let channels = vec![Values, Updates, Messages, Tools, Lifecycle, Input, Tasks, Checkpoints, Custom];
        Filter { channels, ..Filter::default() }
    }

    /// A gap concerns everybody.
    pub fn passes(&self, event: &ProtocolEvent) -> bool {
        if event.method == RESUME_GAP {
            return true;
        }
        if !self.channels.iter().any(|channel| channel.has(event)) {
            return false;
        }
        let within = |levels: usize| self.depth.is_none_or(|depth| levels <= depth);
        match &self.namespaces {
            None => within(event.namespace.len()),
            Some(prefixes) => prefixes
                .iter()
                .any(|prefix| is_below(&event.namespace, prefix) && within(event.namespace.len() - prefix.len())),
        }
    }
}

fn is_below(namespace: &[String], prefix: &[String]) -> bool {
    namespace.len() >= prefix.len()
        && namespace.iter().zip(prefix).all(|(segment, wanted)| {
            segment == wanted || (!wanted.contains(':') && segment.split(':').next() == Some(wanted.as_str()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Json;

    fn event(method: &'static str, namespace: &[&str], data: &str) -> ProtocolEvent {
        ProtocolEvent {
            event_id: String::new(),
            seq: 1,
            method,
            namespace: namespace.iter().map(|segment| (*segment).to_owned()).collect(),
            node: None,
            timestamp: 0,
            data: Json::parse(data).expect("JSON"),
        }
    }

    fn filter(channels: &[&str], namespaces: Option<&[&[&str]]>, depth: Option<usize>) -> Filter {
        Filter {
            channels: channels.iter().map(|name| Channel::parse(name).expect("a channel")).collect(),
            namespaces: namespaces
                .map(|all| all.iter().map(|one| one.iter().map(|segment| (*segment).to_owned()).collect()).collect()),
            depth,
        }
    }

    #[test]
    fn namespaces_match_by_prefix_and_depth() {
        let passes = |namespaces: Option<&[&[&str]]>, depth, ns: &[&str]| {
            filter(&["values"], namespaces, depth).passes(&event("values", ns, "{}"))
        };
        assert!(passes(None, None, &["a:1", "b:2"]));
        assert!(passes(Some(&[&[]]), Some(1), &[]) && passes(Some(&[&[]]), Some(1), &["a:1"]));
        assert!(!passes(Some(&[&[]]), Some(1), &["a:1", "b:2"]));
        assert!(passes(Some(&[&["a"]]), None, &["a:1", "b:2"]) && passes(Some(&[&["a:1"]]), Some(0), &["a:1"]));
        assert!(!passes(Some(&[&["a:2"]]), None, &["a:1"]) && !passes(Some(&[&["a"]]), None, &["ab:1"]));
        assert!(passes(Some(&[&["x"], &["a"]]), None, &["a:1"]) && !passes(Some(&[&["a"]]), None, &[]));
        assert!(!passes(None, Some(0), &["a:1"]) && !passes(Some(&[]), None, &[]));
    }

    #[test]
    fn channels_are_methods_and_names_of_custom_events() {
        let input = event("input.requested", &[], "{}");
        assert!(filter(&["input"], None, None).passes(&input) && !filter(&["values"], None, None).passes(&input));
        let named = event("custom", &[], r#"{"name":"progress","payload":1}"#);
        assert!(filter(&["custom"], None, None).passes(&named));
        assert!(filter(&["custom:progress"], None, None).passes(&named));
        assert!(!filter(&["custom:other"], None, None).passes(&named));
        for bad in ["", "custom:", "debug"] {
            assert_eq!(Channel::parse(bad), None, "{bad}");
        }
    }
}
