//! What several promises need: stores with their settings changed, conditions, and an account to send commands to.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

use annals::{
    Aggregate, Annals, App, CommandCounts, Config, Context, Event, ExecuteError, FailurePolicy, Options, StartError,
    StoreError,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How long a condition may take to come true: generous, for a machine that does much else.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Stays before what fails for as long as a test takes.
pub(crate) const HOLDS: FailurePolicy =
    FailurePolicy { attempts: 1_000, ceiling: Duration::from_secs(1), ..FailurePolicy::HALT };

/// Asks until `is_so`.
#[track_caller]
pub(crate) fn eventually<F: Future<Output = bool>>(
    what: &str,
    mut is_so: impl FnMut() -> F,
) -> impl Future<Output = ()> {
    let (what, begun) = (what.to_owned(), Instant::now());
    async move {
        let mut moments = tokio::time::interval(Duration::from_millis(10));
        while !is_so().await {
            assert!(begun.elapsed() < LONG, "never came true: {what}");
            moments.tick().await;
        }
    }
}

/// The settings of a store at `url`: with `ANNALS_POOLER=transaction`, through a pooler.
pub(crate) use crate::pooler::config;

/// A store as another process would open it.
pub(crate) async fn open(url: &str) -> Annals {
    open_with(config(url)).await
}

pub(crate) async fn open_with(config: Config) -> Annals {
    Annals::connect(config).await.unwrap()
}

/// An app that only takes commands for accounts.
pub(crate) async fn bank(url: &str) -> App {
    open(url).await.app().aggregate::<Account>().start().await.unwrap()
}

pub(crate) fn with_id(id: Uuid) -> Options {
    Options::default().command_id(id)
}

pub(crate) fn counts<A: Aggregate>(app: &App) -> CommandCounts {
    app.command_counts().into_iter().find(|counts| counts.aggregate == A::TYPE).unwrap()
}

/// The store's refusal of a command.
#[track_caller]
pub(crate) fn refusal<T: Debug, E: std::error::Error>(result: Result<T, ExecuteError<E>>) -> StoreError {
    match result {
        Err(ExecuteError::Store(error)) => error,
        other => panic!("expected a refusal by the store, got {other:?}"),
    }
}

/// The text of the error that an app did not start with.
pub(crate) async fn start_error(builder: annals::Builder) -> (StartError, String) {
    match builder.start().await {
        Err(error) => {
            let text = error.to_string();
            (error, text)
        }
        Ok(_) => panic!("the app started"),
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum AccountEvent {
    Deposited { cents: i64 },
    Withdrawn { cents: i64 },
    Rated { rates: Vec<f64> },
}
impl Event for AccountEvent {}

#[derive(Debug, Clone, Serialize)]
pub(crate) enum AccountCommand {
    Deposit(i64),
    Withdraw(i64),
    /// Deposits what is missing.
    Ensure(i64),
    /// Breaks the rule that only finite numbers are stored, whatever `0` is.
    Rate(i64),
    /// Always refused: shows the state that it was decided on.
    Show,
}

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("the balance is {balance}")]
pub(crate) struct Refused {
    pub(crate) balance: i64,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Account {
    balance: i64,
}

impl Aggregate for Account {
    const TYPE: &'static str = "account";
    type Command = AccountCommand;
    type Event = AccountEvent;
    type Error = Refused;

    fn handle(&self, command: &AccountCommand, _: &Context) -> Result<Vec<AccountEvent>, Refused> {
        let balance = self.balance;
        match *command {
            AccountCommand::Deposit(cents) => Ok(vec![AccountEvent::Deposited { cents }]),
            AccountCommand::Withdraw(cents) if cents <= balance => Ok(vec![AccountEvent::Withdrawn { cents }]),
            AccountCommand::Ensure(cents) if cents <= balance => Ok(vec![]),
            AccountCommand::Ensure(cents) => Ok(vec![AccountEvent::Deposited { cents: cents - balance }]),
            AccountCommand::Rate(by) => Ok(vec![AccountEvent::Rated { rates: vec![1.0, balance as f64 / by as f64] }]),
            AccountCommand::Withdraw(_) | AccountCommand::Show => Err(Refused { balance }),
        }
    }

    fn apply(&mut self, event: &AccountEvent) {
        match event {
            AccountEvent::Deposited { cents } => self.balance += cents,
            AccountEvent::Withdrawn { cents } => self.balance -= cents,
            AccountEvent::Rated { .. } => {}
        }
    }
}

/// What the account's balance is, proved current.
pub(crate) async fn balance(app: &App, id: impl Into<annals::Id>) -> i64 {
    match app.execute::<Account>(id, AccountCommand::Show).await {
        Err(ExecuteError::Rejected(Refused { balance })) => balance,
        other => panic!("{other:?}"),
    }
}
