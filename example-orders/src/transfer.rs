//! Money from one account to another, as a person types it.

use std::{path::Path, process::ExitCode};

use annals::{App, BoxError, ExecuteError, Id, Saga, SagaFilter, SagaState};
use uuid::Uuid;

use crate::{
    account::{Account, AccountCommand, AccountError},
    figures::dollars,
    operate::timeline,
    sagas::{Transfer, ended},
    say::{note, say},
    shop, typed,
};

/// What a new account begins with.
const OPENED_WITH: i64 = 100_000;

/// What is to be moved.
pub(crate) struct Asked {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) cents: i64,
    /// Whether this process is going to end half-way.
    pub(crate) crash: bool,
}

/// Finishes what was begun before, then moves what is asked for, and shows how.
///
/// # Errors
/// It cannot be asked for, or Postgres cannot be asked.
pub(crate) async fn run(app: &App, data_dir: &Path, asked: Option<Asked>) -> Result<ExitCode, BoxError> {
    let mut is_good = true;
    let crash = asked.as_ref().is_some_and(|asked| asked.crash);
    if !crash {
        let states = vec![SagaState::Running, SagaState::Undoing];
        let filter = SagaFilter { saga: Some(Transfer::NAME.into()), states, ..SagaFilter::default() };
        for begun in app.sagas().list(&filter, 1_000).await? {
            say("A transfer was begun before, and is finished first:")?;
            is_good &= follow(app, &begun.id).await?;
        }
    }
    let Some(Asked { from, to, cents, .. }) = asked else {
        return Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    };
    if from == to {
        return Err(format!("nothing is moved: both accounts are {from:?}").into());
    }
    for name in [&from, &to] {
        match app.execute::<Account>(name, AccountCommand::Open { cents: OPENED_WITH }).await {
            Ok(_) => say(format_args!("{name} has an account now, with {}", dollars(OPENED_WITH)))?,
            Err(ExecuteError::Rejected(AccountError::OpenedBefore)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if crash {
        let again = typed::command(data_dir, "transfer");
        note(format_args!("this process ends between debit and credit; the next one finishes it:\n   {again}"));
    }
    let transfer = Uuid::now_v7();
    let request = AccountCommand::RequestTransfer { transfer, to: to.clone(), cents };
    app.execute::<Account>(&from, request).await?;
    is_good &= follow(app, &transfer.into()).await?;
    for name in [&from, &to] {
        let cents = shop::fold::<Account>(app, name).await?.cents.unwrap_or_default();
        say(format_args!("{name:<12} {}", dollars(cents)))?;
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Waits until a transfer has ended, and tells its story. Returns whether the money arrived.
async fn follow(app: &App, id: &Id) -> Result<bool, BoxError> {
    let ended = ended(app, Transfer::NAME, id).await?;
    let history = app.sagas().history(Transfer::NAME, &**id).await?;
    say(format_args!("transfer {}: {}\n{}", &**id, ended.state.as_str(), timeline(&history)))?;
    Ok(ended.state == SagaState::Completed)
}
