//! The shop's sagas, and who runs them.

mod fulfilment;
#[cfg(test)]
mod tests;
mod transfer;

use std::time::Duration;

use annals::{App, BoxError, Builder, Id, Saga, SagaFilter, SagaInstance, SagaState};
use tokio::time::sleep;

pub(crate) use fulfilment::{Fulfilment, ToFulfil, products};
pub(crate) use transfer::Transfer;

use crate::gateway::{Client, DEFAULT_URL};

/// How often it is looked whether an instance has ended.
const LOOK: Duration = Duration::from_millis(20);

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
    /// For a process that runs none, and looks after those of others.
    ///
    /// # Errors
    /// No client of a gateway can be made.
    pub(crate) fn known() -> Result<Self, BoxError> {
        Ok(Self { gateway: Client::new(DEFAULT_URL)?, runs: &[], crash: false })
    }

    /// Registers all of them.
    pub(crate) fn register(&self, app: Builder) -> Builder {
        app.saga(Fulfilment { gateway: self.gateway.clone() }).saga(Transfer { crash: self.crash })
    }
}

/// Waits until an instance has ended, or needs an operator.
///
/// # Errors
/// Postgres cannot be asked.
pub(crate) async fn ended(app: &App, saga: &str, id: &Id) -> Result<SagaInstance, BoxError> {
    let filter = SagaFilter { saga: Some(saga.into()), id: Some((**id).into()), ..SagaFilter::default() };
    loop {
        let instances = app.sagas().list(&filter, 100).await?;
        let found = instances.into_iter().find(|instance| instance.id == *id);
        let is_over = |state| matches!(state, SagaState::Completed | SagaState::Compensated | SagaState::Stuck);
        if let Some(found) = found.filter(|found| is_over(found.state)) {
            return Ok(found);
        }
        sleep(LOOK).await;
    }
}
