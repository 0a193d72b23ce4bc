//! What nodes offer, and what of it is booked. Pure sums: the caller holds the booking lock.

use std::collections::HashMap;
use std::str::FromStr;

use vineyard_proto::csi::Topology;

use crate::bytes::Bytes;
use crate::identity::{NODE_KEY, POOL_KEY};
use crate::volume::NodeId;
use crate::volume::catalog::Stored;

/// The memory that a node offers to volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeBudget {
    /// Which node.
    pub(crate) node: NodeId,
    /// The pool that it belongs to.
    pub(crate) pool: String,
    /// How much.
    pub(crate) budget: Bytes,
}

impl NodeBudget {
    /// Whether the node is in a segment. A key that we do not know is in nobody's.
    pub(crate) fn is_in(&self, segment: &HashMap<String, String>) -> bool {
        segment.iter().all(|(key, value)| match key.as_str() {
            NODE_KEY => value == self.node.as_str(),
            POOL_KEY => *value == self.pool,
            _ => false,
        })
    }

    /// What is left of it. Never below 0, although a budget may have been made smaller.
    pub(crate) fn free(&self, all: &[Stored]) -> Bytes {
        let here = all
            .iter()
            .filter(|stored| stored.volume.booked == self.node);
        let booked: u64 = here.map(|stored| stored.volume.capacity.0).sum();
        Bytes(self.budget.0.saturating_sub(booked))
    }
}

impl FromStr for NodeBudget {
    type Err = String;

    /// `name=bytes[,pool]`
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (node, rest) = text.split_once('=').ok_or("not name=bytes[,pool]")?;
        let (budget, pool) = rest.split_once(',').unwrap_or((rest, "default"));
        Ok(Self {
            node: NodeId::parse(node)?,
            pool: crate::volume::label_value(pool)?.to_owned(),
            budget: budget.parse()?,
        })
    }
}

/// The nodes in the order in which they are tried: the preferred segments first to last, then the required ones. No
/// segments: all nodes, the emptiest first.
pub(crate) fn candidates<'a>(
    nodes: &'a [NodeBudget],
    all: &[Stored],
    preferred: &[Topology],
    requisite: &[Topology],
) -> Vec<&'a NodeBudget> {
    let in_order = |terms: &[Topology]| -> Vec<&'a NodeBudget> {
        let of = |term: &Topology| {
            nodes
                .iter()
                .filter(|node| node.is_in(&term.segments))
                .collect()
        };
        terms
            .iter()
            .flat_map(|term| -> Vec<_> { of(term) })
            .collect()
    };
    let mut order = in_order(preferred);
    if requisite.is_empty() {
        let mut rest: Vec<_> = nodes.iter().collect();
        rest.sort_by_key(|node| std::cmp::Reverse(node.free(all)));
        // Preferences without requirements bind to nothing.
        order.extend(rest);
    } else {
        let required = in_order(requisite);
        order.retain(|node| required.contains(node));
        order.extend(required);
    }
    let mut seen = Vec::new();
    order.retain(|node| {
        let first = !seen.contains(&&node.node);
        seen.push(&node.node);
        first
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(pairs: &[(&str, &str)]) -> Topology {
        let segments = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Topology {
            segments: segments.collect(),
        }
    }

    fn names(order: &[&NodeBudget]) -> String {
        order
            .iter()
            .map(|node| node.node.as_str())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn preferred_segments_are_tried_in_order_and_requisite_ones_bind() {
        let nodes: Vec<NodeBudget> = ["a=1GiB", "b=3GiB", "c=2GiB,far"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let (a, b, c) = (
            term(&[(NODE_KEY, "a")]),
            term(&[(NODE_KEY, "b")]),
            term(&[(NODE_KEY, "c")]),
        );
        let far = term(&[(POOL_KEY, "far")]);
        let order = |preferred: &[Topology], requisite: &[Topology]| {
            names(&candidates(&nodes, &[], preferred, requisite))
        };
        assert_eq!(order(&[], &[]), "b c a");
        assert_eq!(order(&[c.clone(), a.clone()], &[]), "c a b");
        assert_eq!(
            order(&[b.clone(), a.clone()], &[a.clone(), b.clone(), c.clone()]),
            "b a c"
        );
        assert_eq!(
            order(&[b.clone(), a.clone()], std::slice::from_ref(&a)),
            "a"
        );
        assert_eq!(order(&[], &[far]), "c");
        assert_eq!(order(&[], &[term(&[("other/key", "a")])]), "");
        assert_eq!(
            order(&[], &[term(&[(NODE_KEY, "a"), (POOL_KEY, "far")])]),
            ""
        );
    }

    #[test]
    fn a_budget_is_read_and_nonsense_is_refused() {
        let node: NodeBudget = "n-1=4GiB,gpu".parse().unwrap();
        assert_eq!((node.pool.as_str(), node.budget), ("gpu", Bytes(4 << 30)));
        for text in ["n", "n=", "=1GiB", "n=1GiB,", "n n=1GiB"] {
            assert!(text.parse::<NodeBudget>().is_err(), "{text}");
        }
    }
}
