//! Circuit breakers before whoever is called outside: who is left alone, and since when.

use std::path::Path;

use annals::{Annals, BoxError, CircuitBreaker};
use chrono::{DateTime, Utc};
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serialize;

use crate::{
    cli::BreakerCommand,
    figures::{count, span},
    say::say,
    tables::table,
    typed,
};

/// A breaker as it is shown to programs.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    target: &'a str,
    process: &'a str,
    pid: i32,
    state: &'a str,
    failures: u32,
    last_error: Option<&'a str>,
    open_until: Option<DateTime<Utc>>,
    changed_at: DateTime<Utc>,
    held_by: Option<&'a str>,
    reason: Option<&'a str>,
}

/// Carries out what was typed.
///
/// # Errors
/// Nobody calls such a target, or Postgres cannot be asked.
pub(crate) async fn run(store: &Annals, data_dir: &Path, command: BreakerCommand) -> Result<(), BoxError> {
    let breakers = store.breakers();
    match command {
        BreakerCommand::List { json } => {
            let all = breakers.list().await?;
            if json {
                for breaker in &all {
                    say(serde_json::to_string(&shown(breaker))?)?;
                }
                return Ok(());
            }
            if all.is_empty() {
                return Ok(say("no process that is alive calls anybody")?);
            }
            Ok(say(listed(&all, Utc::now()))?)
        }
        BreakerCommand::Open { target, by } => {
            breakers.open(&target, &by.into()).await?;
            let close = typed::command(data_dir, &format!("breakers close {target} --reason TEXT"));
            Ok(say(format_args!(
                "nobody calls {target} any more; what would call it waits. It goes on with\n   {close}"
            ))?)
        }
        BreakerCommand::Close { target, by } => {
            breakers.close(&target, &by.into()).await?;
            Ok(say(format_args!("{target} is called again"))?)
        }
    }
}

fn shown(breaker: &CircuitBreaker) -> Shown<'_> {
    let held = breaker.held_by.as_ref();
    Shown {
        target: &breaker.target,
        process: &breaker.process,
        pid: breaker.pid,
        state: &breaker.state,
        failures: breaker.failures,
        last_error: breaker.last_error.as_deref(),
        open_until: breaker.open_until,
        changed_at: breaker.changed_at,
        held_by: held.map(|(by, _)| &**by),
        reason: held.map(|(_, reason)| &**reason),
    }
}

fn listed(all: &[CircuitBreaker], now: DateTime<Utc>) -> Table {
    let mut table = table(["target", "failures", "process", "state", "since", "calls again", "last error", "held by"]);
    for breaker in all {
        let held = breaker.held_by.as_ref().map(|(by, reason)| format!("{by}: {reason}"));
        let again = breaker.open_until.filter(|until| *until > now);
        table.add_row([
            breaker.target.clone(),
            count(breaker.failures.into()),
            format!("{} {}", breaker.process, breaker.pid),
            breaker.state.clone(),
            span((now - breaker.changed_at).as_seconds_f64()),
            again.map(|until| format!("in {}", span((until - now).as_seconds_f64()))).unwrap_or_default(),
            breaker.last_error.clone().unwrap_or_default(),
            held.unwrap_or_default(),
        ]);
    }
    for words in [2, 3, 6, 7] {
        if let Some(column) = table.column_mut(words) {
            column.set_cell_alignment(CellAlignment::Left);
        }
    }
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table
}
