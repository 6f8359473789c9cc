//! An order service on Annals: run it without a command for a tour.
//!
//! `import` brings orders over, `report` shows what the read models say. `projections` and `dead-letters` look after the read
//! models, also while another process runs them; `replay check` says whether this build can read the log. To see one of them fail and be mended:
//!
//! ```sh
//! cargo run -p example-orders -- plant-poison       # an event that no read model can read, and a good one behind it
//! cargo run -p example-orders -- projections list   # both are parked, everything else goes on
//! cargo run -p example-orders -- dead-letters list  # why, how many, since when
//! cargo run -p example-orders -- dead-letters discard order_search --event POSITION --reason "not an order"
//! cargo run -p example-orders -- projections verify # what is shown is what the log makes of it
//! ```
//!
//! Orders of the online shop are fulfilled by a saga, with a gateway that is a process of its own and may fail; `transfer` moves
//! money between accounts by another. Processes that run them may be killed at any moment:
//!
//! ```sh
//! cargo run -p example-orders -- fulfil --count 1000 --declined 0.1 --lost 0.02 --processes 2 --kill-every 4
//! cargo run -p example-orders -- fulfil --count 5 --shipments-refused 1 --refunds-refused 1  # some that need an operator
//! cargo run -p example-orders -- sagas list --state stuck      # what happened to them: sagas show fulfilment ORDER
//! cargo run -p example-orders -- reconcile                     # the log, the gateway's books and the stock agree
//! cargo run -p example-orders -- transfer ada bob 2500 --crash # ends half-way; `transfer` finishes it
//! cargo run -p example-orders -- return ORDER                  # of a delivered one: no saga, but reactors and an expectation
//! ```

mod account;
mod cli;
mod figures;
mod fulfil;
mod gateway;
mod import;
mod login;
mod operate;
mod order;
mod read_models;
mod report;
mod returns;
mod sagas;
mod say;
mod shop;
mod signals;
mod stock;
mod tables;
#[cfg(test)]
mod tests;
mod tour;
mod trade;
mod transfer;
mod typed;
mod watch;

use std::{error::Error, path::Path, process::ExitCode};

use annals::{BoxError, Saga};
use clap::Parser;
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{Cli, Command},
    gateway::{Client, DEFAULT_URL},
    import::{Ending, Import, Source},
    order::OrderId,
    report::Totals,
    sagas::{Sagas, Transfer},
    say::{is_unread, note, say, say_if_read},
    shop::{Role, Shop},
    signals::until,
    transfer::Asked,
};

/// A third of what an import itself computes goes into memory with the system's allocator, less with this one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What [`Command::Import`] answers when something was left out.
const REJECTED: u8 = 3;

const AGAIN: &str = "what is done is kept, and the same command again completes the import";

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(code) => code,
        Err(error) if is_unread(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            note(format_args!("error: {}", with_causes(&*error)));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<ExitCode, BoxError> {
    let stop = signals::stop()?;
    let data_dir = &cli.data_dir;
    match cli.command {
        None => {
            let work = async |shop: &Shop| tour::run(shop, data_dir, &stop).await.map(|()| ExitCode::SUCCESS);
            in_shop(data_dir, Role::Shop, Some(&Sagas::known()?), &stop, work).await
        }
        Some(Command::Report { json }) => {
            let work = async |shop: &Shop| until(&stop, report(shop, json)).await.map(|_| ExitCode::SUCCESS);
            in_shop(data_dir, Role::Shop, None, &stop, work).await
        }
        Some(Command::Import { file, json, rejections }) => {
            let source = Source::open(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
            let import = Import::open(source, rejections.as_deref())?;
            in_shop(data_dir, Role::Shop, None, &stop, async |shop| self::import(shop, import, json, &stop).await).await
        }
        Some(Command::Projections(command)) => {
            let role = command.role();
            let work = async |shop: &Shop| operate::projections(shop, data_dir, command, &stop).await;
            in_shop(data_dir, role, Some(&Sagas::known()?), &stop, work).await
        }
        Some(Command::DeadLetters(command)) => {
            command.check()?;
            let role = command.role();
            let work = async |shop: &Shop| unless_stopped(&stop, role, operate::letters(shop, data_dir, command)).await;
            in_shop(data_dir, role, Some(&Sagas::known()?), &stop, work).await
        }
        Some(Command::Trade { rate, seconds, json }) => {
            let work =
                async |shop: &Shop| trade::run(shop, rate, seconds, json, &stop).await.map(|()| ExitCode::SUCCESS);
            in_shop(data_dir, Role::Shop, None, &stop, work).await
        }
        Some(Command::Replay(command)) => operate::replay(data_dir, command, &stop).await,
        Some(Command::Gateway { port, data, switches, life }) => {
            if life.attached {
                signals::stop_with_input(&stop);
            }
            gateway::run(port, &data, switches, &stop).await
        }
        Some(Command::Sagas(command)) => {
            command.check()?;
            let sagas = Sagas::known()?;
            let role = Role::Onlooker;
            let work = async |shop: &Shop| {
                until(&stop, operate::sagas(shop, data_dir, command)).await.map(|_| ExitCode::SUCCESS)
            };
            in_shop(data_dir, role, Some(&sagas), &stop, work).await
        }
        Some(Command::Breakers(command)) => {
            command.check()?;
            let work = async |shop: &Shop| {
                let done = until(&stop, operate::breakers(shop.app.store(), data_dir, command)).await;
                done.map(|_| ExitCode::SUCCESS)
            };
            in_shop(data_dir, Role::Onlooker, None, &stop, work).await
        }
        Some(Command::Transfer { from, to, cents, crash }) => {
            let sagas = Sagas { gateway: Client::new(DEFAULT_URL)?, runs: &[Transfer::NAME], crash };
            let asked = match (from, to, cents) {
                (Some(from), Some(to), Some(cents)) => Some(Asked { from, to, cents, crash }),
                _ => None,
            };
            let role = Role::Onlooker;
            let work = async |shop: &Shop| unless_stopped(&stop, role, transfer::run(&shop.app, data_dir, asked)).await;
            in_shop(data_dir, role, Some(&sagas), &stop, work).await
        }
        Some(Command::Return { order, reason, gateway, json }) => {
            let (role, sagas) = (Role::Onlooker, Sagas::known()?);
            let asked = returns::Asked { order: OrderId(order), reason, gateway, json };
            let work = async |shop: &Shop| unless_stopped(&stop, role, returns::run(shop, data_dir, asked)).await;
            in_shop(data_dir, role, Some(&sagas), &stop, work).await
        }
        Some(Command::Fulfil { count, processes, kill_every, switches, json }) => {
            let sagas = Sagas::known()?;
            let (role, asked) = (Role::Onlooker, fulfil::Asked { count, processes, kill_every, switches, json });
            let work = async |shop: &Shop| unless_stopped(&stop, role, fulfil::run(shop, data_dir, asked)).await;
            in_shop(data_dir, role, Some(&sagas), &stop, work).await
        }
        Some(Command::Reconcile { gateway, json }) => {
            let sagas = Sagas::known()?;
            let role = Role::Onlooker;
            let work = async |shop: &Shop| {
                unless_stopped(&stop, role, fulfil::compare(shop, data_dir, gateway.as_deref(), json)).await
            };
            in_shop(data_dir, role, Some(&sagas), &stop, work).await
        }
        Some(Command::Work { gateway, life }) => {
            if life.attached {
                signals::stop_with_input(&stop);
            }
            let sagas = Sagas { gateway: Client::new(&gateway.url)?, runs: &sagas::EVERYTHING, crash: false };
            in_shop(data_dir, Role::Onlooker, Some(&sagas), &stop, async |_| work(&stop).await).await
        }
        Some(Command::PlantPoison) => {
            let role = Role::Operator;
            let work = async |shop: &Shop| unless_stopped(&stop, role, operate::plant(shop, data_dir)).await;
            in_shop(data_dir, role, None, &stop, work).await
        }
    }
}

/// Runs the sagas until `stop`: the app does, and whoever started the process is told that it does.
async fn work(stop: &CancellationToken) -> Result<ExitCode, BoxError> {
    say("running sagas")?;
    stop.cancelled().await;
    Ok(ExitCode::SUCCESS)
}

/// Lets `work` end, or drops it when `stop` asks for an end, which is none of its failures.
async fn unless_stopped(
    stop: &CancellationToken,
    role: Role,
    work: impl Future<Output = Result<ExitCode, BoxError>>,
) -> Result<ExitCode, BoxError> {
    Ok(until(stop, work).await?.unwrap_or(role.stopped()))
}

/// Opens the shop for `work`, and closes it in good order whatever comes of it. A stop before it is open is an end, too.
async fn in_shop(
    data_dir: &Path,
    role: Role,
    sagas: Option<&Sagas>,
    stop: &CancellationToken,
    work: impl AsyncFnOnce(&Shop) -> Result<ExitCode, BoxError>,
) -> Result<ExitCode, BoxError> {
    let Some(shop) = until(stop, Shop::open(data_dir, role, sagas)).await? else { return Ok(role.stopped()) };
    let outcome = tokio::select! {
        outcome = work(&shop) => outcome,
        never = shop.watch() => match never {},
    };
    let closed = shop.close().await;
    let code = outcome?;
    closed.map(|()| code)
}

async fn report(shop: &Shop, json: bool) -> Result<(), BoxError> {
    if !json {
        return report::print(&shop.app).await;
    }
    Ok(say(serde_json::to_string(&Totals::read(&shop.app).await?)?)?)
}

async fn import(shop: &Shop, import: Import, json: bool, stop: &CancellationToken) -> Result<ExitCode, BoxError> {
    let (summary, ending) = import.run(&shop.app, stop).await?;
    match &ending {
        Ending::Complete => {}
        Ending::EndsEarly { last_good_line, reason } => {
            note(format_args!("the file ends early: {reason}; the last good line is {last_good_line}"));
        }
        Ending::Stopped { line } => note(format_args!("stopped at line {line}; {AGAIN}")),
        Ending::Failed { line, error } => {
            note(format_args!("error: failed at line {line}: {}; {AGAIN}", with_causes(error)));
        }
    }
    let text = if json { serde_json::to_string(&summary)? } else { summary.text() };
    say_if_read(text)?;
    Ok(match ending {
        Ending::Failed { .. } => ExitCode::FAILURE,
        Ending::Stopped { .. } => ExitCode::SUCCESS,
        Ending::Complete if summary.orders_rejected == 0 => ExitCode::SUCCESS,
        Ending::Complete | Ending::EndsEarly { .. } => ExitCode::from(REJECTED),
    })
}

/// An error and what led to it, in one line.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let words = words(error);
        if !text.contains(&words) {
            text = if text.is_empty() { words } else { format!("{text}: {words}") };
        }
        // Behind what Postgres said, the driver says it again.
        cause = error.source().filter(|_| !matches!(error.downcast_ref(), Some(sqlx::Error::Database(_))));
    }
    text
}

/// What an error says; of Postgres' own errors the message alone, without the line of its source code.
fn words(error: &(dyn Error + 'static)) -> String {
    match error.downcast_ref() {
        Some(sqlx::Error::Database(refusal)) => refusal.message().to_owned(),
        _ => error.to_string(),
    }
}
