//! The jobs, with pods whose cgroups are plain directories and an engine that moves numbers.

mod asking;
mod stage;
mod unpublishing;

use super::*;
pub(crate) use stage::unbilled;
