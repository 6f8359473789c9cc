//! The shop's sagas, and who runs them.

mod fulfilment;
#[cfg(test)]
mod tests;
mod transfer;

use annals::{Builder, Saga};

pub(crate) use fulfilment::{Fulfilment, ToFulfil, products};
pub(crate) use transfer::Transfer;

use crate::gateway::Client;

/// The names of all of them.
pub(crate) const ALL: [&str; 2] = [Fulfilment::NAME, Transfer::NAME];

/// The sagas as a process registers them.
#[derive(Debug, Clone)]
pub(crate) struct Sagas {
    /// Whom a fulfilment calls.
    pub(crate) gateway: Client,
    /// Those that this process runs; of the others it only knows.
    pub(crate) runs: &'static [&'static str],
    /// Whether this process ends between the two halves of a transfer, as if it were killed.
    pub(crate) crash: bool,
}

impl Sagas {
    /// Registers all of them.
    pub(crate) fn register(&self, app: Builder) -> Builder {
        app.saga(Fulfilment { gateway: self.gateway.clone() }).saga(Transfer { crash: self.crash })
    }
}
