//! What nodes offer, and what of it is left. Pure sums; the catalog alone decides whether a booking fits.

use std::collections::HashMap;
use std::str::FromStr;

use vineyard_proto::csi::Topology;

use crate::bytes::Bytes;
use crate::identity::{NODE_KEY, POOL_KEY};
use crate::volume::{Listing, NodeId, catalog};

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
    ///
    /// # Errors
    /// When there is a record that cannot be read.
    pub(crate) fn free(&self, all: &Listing) -> Result<Bytes, catalog::Error> {
        let booked = all.booked(&self.node)?;
        Ok(Bytes(self.budget.0.saturating_sub(booked.0)))
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

/// The nodes in the order in which they are tried, with what each has left: the preferred segments first to last, then the
/// required ones. No segments: all nodes, the emptiest first.
///
/// # Errors
/// When there is a record that cannot be read.
pub(crate) fn candidates<'a>(
    nodes: &'a [NodeBudget],
    all: &Listing,
    preferred: &[Topology],
    requisite: &[Topology],
) -> Result<Vec<(&'a NodeBudget, Bytes)>, catalog::Error> {
    let with_free = |node: &'a NodeBudget| Ok((node, node.free(all)?));
    let order = ordered(nodes, preferred, requisite).into_iter();
    let mut order: Vec<_> = order
        .map(with_free)
        .collect::<Result<_, catalog::Error>>()?;
    if requisite.is_empty() {
        let mut rest: Vec<_> = nodes.iter().map(with_free).collect::<Result<_, _>>()?;
        rest.sort_by_key(|(_, free)| std::cmp::Reverse(*free));
        // Preferences without requirements bind to nothing.
        order.extend(rest);
    }
    let mut seen = Vec::new();
    order.retain(|(node, _)| {
        let first = !seen.contains(&&node.node);
        seen.push(&node.node);
        first
    });
    Ok(order)
}

fn ordered<'a>(
    nodes: &'a [NodeBudget],
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
    if !requisite.is_empty() {
        let required = in_order(requisite);
        order.retain(|node| required.contains(node));
        order.extend(required);
    }
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

    fn names(order: &[(&NodeBudget, Bytes)]) -> String {
        order
            .iter()
            .map(|(node, _)| node.node.as_str())
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
            names(&candidates(&nodes, &Listing::default(), preferred, requisite).unwrap())
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
