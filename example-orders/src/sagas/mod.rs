//! The shop's sagas, reactors and expectation, and who runs them.

mod fulfilment;
mod notify;
mod returns;
#[cfg(test)]
mod tests;
mod transfer;

use std::time::Duration;

use annals::{
    App, BoxError, Builder, Expectation, FailurePolicy, Id, Reactor, Saga, SagaFilter, SagaInstance, SagaState,
};
use tokio::time::sleep;

pub(crate) use fulfilment::{Fulfilment, ToFulfil, products};
pub(crate) use notify::{Notify, message};
pub(crate) use returns::{PayBack, Refund, Restock};
pub(crate) use transfer::Transfer;

use crate::{
    gateway::{Client, DEFAULT_URL},
    say::note,
};

/// How often it is looked whether an instance has ended.
const LOOK: Duration = Duration::from_millis(20);

/// How the reactors try again what fails: for a minute, then when an operator says so.
const PATIENT: FailurePolicy = FailurePolicy { attempts: 12, ceiling: Duration::from_secs(10), ..FailurePolicy::PARK };

/// The names of all sagas, the expectation among them.
pub(crate) const ALL: [&str; 3] = [Fulfilment::NAME, Transfer::NAME, Refund::NAME];

/// The names of what sees to a return.
pub(crate) const RETURNS: [&str; 4] = [Refund::NAME, PayBack::NAME, Restock::NAME, Notify::NAME];

/// The names of all of them.
pub(crate) const EVERYTHING: [&str; 6] =
    [Fulfilment::NAME, Transfer::NAME, Refund::NAME, PayBack::NAME, Restock::NAME, Notify::NAME];

/// The sagas, reactors and the expectation as a process registers them.
#[derive(Debug, Clone)]
pub(crate) struct Sagas {
    /// Whom a fulfilment and the reactors call.
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

    /// Registers all of them. A process that runs them all says on standard error what needs somebody; others show it themselves.
    pub(crate) fn register(&self, app: Builder) -> Builder {
        let app = app
            .saga(Fulfilment { gateway: self.gateway.clone() })
            .saga(Transfer { crash: self.crash })
            .expectation::<Refund>()
            .reactor(PayBack { gateway: self.gateway.clone() })
            .reactor(Restock)
            .reactor(Notify { messages: self.gateway.clone() });
        if self.runs != EVERYTHING {
            return app;
        }
        app.on_attention(|at| note(format_args!("{} {} needs somebody: {}", at.saga, &*at.id, at.reason)))
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
