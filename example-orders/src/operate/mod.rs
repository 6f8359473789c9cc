//! Looking after the read models and the sagas: what an operator types, and what is shown.

mod breakers;
mod choices;
mod letter;
mod letters;
mod model;
mod poison;
mod progress;
mod projections;
mod rebuild;
mod replay;
mod sagas;
mod settle;
mod timeline;
mod verify;

pub(crate) use breakers::run as breakers;
pub(crate) use letters::run as letters;
pub(crate) use model::{model, models};
pub(crate) use poison::plant;
pub(crate) use projections::run as projections;
pub(crate) use replay::run as replay;
pub(crate) use sagas::run as sagas;
pub(crate) use timeline::timeline;

/// What a command answers when something is parked still that it was to get out of the way.
const STILL_PARKED: u8 = 3;
