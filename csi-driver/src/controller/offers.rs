//! Which nodes there are: fixed by the command line, or what nodes themselves write into Kubernetes.

use super::NodeBudget;
use crate::volume::catalog;

/// What the nodes offer.
#[derive(Clone, Debug)]
pub(crate) enum Offers {
    /// Always the same.
    Fixed(Vec<NodeBudget>),
    /// As the nodes say.
    #[cfg(feature = "kubernetes")]
    Resources(Box<crate::resources::Nodes>),
}

impl FromIterator<NodeBudget> for Offers {
    fn from_iter<I: IntoIterator<Item = NodeBudget>>(nodes: I) -> Self {
        Self::Fixed(nodes.into_iter().collect())
    }
}

impl Offers {
    /// All nodes as of now.
    ///
    /// # Errors
    /// When Kubernetes does not say.
    pub(crate) async fn all(&self) -> Result<Vec<NodeBudget>, catalog::Error> {
        match self {
            Self::Fixed(nodes) => Ok(nodes.clone()),
            #[cfg(feature = "kubernetes")]
            Self::Resources(nodes) => nodes.budgets().await,
        }
    }
}
