//! Where routers lead: what they answer, and what they were declared to answer.

use indexmap::IndexMap;

use super::node::NodeError;
use crate::engine::{Destination, EngineError, Packet};

/// A router's answer. Made from a name, a [`Destination`], a [`Packet`], a list of either, an `Option` (`None` is the invalid answer
/// "no decision"; an empty list ends the path) or a `Result`.
#[derive(Debug)]
pub struct Destinations(pub(super) Result<Option<Vec<Destination>>, EngineError>);

impl From<&str> for Destinations {
    fn from(node: &str) -> Self {
        Destination::from(node).into()
    }
}

impl From<String> for Destinations {
    fn from(node: String) -> Self {
        Destination::from(node).into()
    }
}

impl From<Destination> for Destinations {
    fn from(destination: Destination) -> Self {
        Destinations(Ok(Some(vec![destination])))
    }
}

impl From<Packet> for Destinations {
    fn from(packet: Packet) -> Self {
        Destination::from(packet).into()
    }
}

impl<T: Into<Destination>> From<Vec<T>> for Destinations {
    fn from(destinations: Vec<T>) -> Self {
        Destinations(Ok(Some(destinations.into_iter().map(Into::into).collect())))
    }
}

impl<T: Into<Destination>, const N: usize> From<[T; N]> for Destinations {
    fn from(destinations: [T; N]) -> Self {
        Destinations(Ok(Some(destinations.into_iter().map(Into::into).collect())))
    }
}

impl<T: Into<Destinations>> From<Option<T>> for Destinations {
    fn from(destinations: Option<T>) -> Self {
        destinations.map_or(Destinations(Ok(None)), Into::into)
    }
}

impl<T: Into<Destinations>, E: Into<NodeError>> From<Result<T, E>> for Destinations {
    fn from(result: Result<T, E>) -> Self {
        match result.map_err(Into::into) {
            Ok(destinations) => destinations.into(),
            Err(NodeError::Failed(error)) => Destinations(Err(error)),
            Err(other) => Destinations(Err(EngineError::new("RuntimeError", format!("a router cannot {other:?}")))),
        }
    }
}

/// A router that may lead to any node.
#[derive(Debug, Clone, Copy)]
pub struct Any;

/// The nodes a router may lead to. Made from a list of names, from pairs of an answer and the node it stands for, or
/// from [`Any`].
#[derive(Debug, Clone)]
pub struct Targets(pub(super) Option<IndexMap<String, String>>);

impl Targets {
    fn map<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Targets {
        Targets(Some(pairs.into_iter().map(|(answer, node)| (answer.into(), node.into())).collect()))
    }

    fn names<T: Into<String>>(names: impl IntoIterator<Item = T>) -> Targets {
        Targets::map(names.into_iter().map(|name| {
            let name = name.into();
            (name.clone(), name)
        }))
    }
}

impl From<Any> for Targets {
    fn from(_: Any) -> Self {
        Targets(None)
    }
}

impl<const N: usize> From<[&str; N]> for Targets {
    fn from(names: [&str; N]) -> Self {
        Targets::names(names)
    }
}

impl From<Vec<&str>> for Targets {
    fn from(names: Vec<&str>) -> Self {
        Targets::names(names)
    }
}

impl From<Vec<String>> for Targets {
    fn from(names: Vec<String>) -> Self {
        Targets::names(names)
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Targets {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Targets::map(pairs)
    }
}

impl From<Vec<(String, String)>> for Targets {
    fn from(pairs: Vec<(String, String)>) -> Self {
        Targets::map(pairs)
    }
}

impl From<IndexMap<String, String>> for Targets {
    fn from(map: IndexMap<String, String>) -> Self {
        Targets(Some(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_take_many_forms() {
        let nodes = |answer: Destinations| answer.0.expect("no error");
        assert_eq!(nodes("a".into()), Some(vec![Destination::from("a")]));
        assert_eq!(nodes(vec!["a", "b"].into()).map(|nodes| nodes.len()), Some(2));
        assert_eq!(nodes(Vec::<String>::new().into()), Some(vec![]));
        assert_eq!(nodes(None::<&str>.into()), None);
        assert_eq!(nodes(Ok::<_, NodeError>(["a"]).into()).map(|nodes| nodes.len()), Some(1));
        let failed = Destinations::from(Err::<&str, _>(NodeError::new("ValueError", "boom")));
        assert_eq!(failed.0.expect_err("an error").repr(), "ValueError('boom')");
    }
}
