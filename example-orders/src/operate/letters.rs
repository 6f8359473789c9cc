//! Dead letters: what is parked, and what is done about it.

use std::{path::Path, process::ExitCode};

use annals::{BoxError, DeadLetter, DeadLetterGroup, DeadLetters, Followers, Position};
use chrono::{DateTime, Utc};
use comfy_table::{CellAlignment, ContentArrangement};

use super::{
    letter::{Letter, MOST},
    model::follower,
    settle::{self, Act},
};
use crate::{
    cli::Letters,
    figures::{count, span},
    say::{note, say},
    shop::Shop,
    tables::table,
    typed,
};

/// Carries out what was typed.
///
/// # Errors
/// There is no such follower or no such event, nothing comes of it in time, or Postgres cannot be asked.
pub(crate) async fn run(shop: &Shop, data_dir: &Path, command: Letters) -> Result<ExitCode, BoxError> {
    let followers = shop.app.store().followers();
    match command {
        Letters::List { name, json } => {
            if let Some(name) = &name {
                follower(&followers, name).await?;
            }
            match json {
                true => list_json(&followers, name.as_deref()).await?,
                false => list(&followers, data_dir, name.as_deref()).await?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Letters::Show { name, position, json } => {
            show(&followers, &name, position, json).await.map(|()| ExitCode::SUCCESS)
        }
        Letters::Retry { names, chosen, by } => {
            settle::run(&followers, &names, &chosen.into(), &by.into(), Act::Retry).await
        }
        Letters::Discard { names, chosen, by } => {
            settle::run(&followers, &names, &chosen.into(), &by.into(), Act::Discard).await
        }
    }
}

async fn list_json(followers: &Followers, name: Option<&str>) -> Result<(), BoxError> {
    let letters = followers.dead_letters(name, &DeadLetters::All, MOST).await?;
    for letter in &letters {
        say(serde_json::to_string(&Letter::of(letter))?)?;
    }
    if letters.len() == MOST {
        note(format_args!("only the first {} are shown", count(MOST as i64)));
    }
    Ok(())
}

async fn list(followers: &Followers, data_dir: &Path, name: Option<&str>) -> Result<(), BoxError> {
    let groups = followers.dead_letter_groups(name).await?;
    if groups.is_empty() {
        return Ok(say("nothing is parked")?);
    }
    let header = ["name", "error", "failed", "waiting", "oldest", "next attempt", "first event", "fingerprint"];
    let mut table = table(header);
    let (now, mut example) = (Utc::now(), None);
    for group in groups {
        let alike = DeadLetters::Fingerprint(group.fingerprint.clone());
        let first = followers.dead_letters(Some(&group.follower), &alike, 1).await?;
        let first = first.first().map(|letter| letter.position);
        example = example.or_else(|| Some((group.follower.clone(), first?)));
        table.add_row(row(group, first, now));
    }
    for words in [1, 7] {
        if let Some(column) = table.column_mut(words) {
            column.set_cell_alignment(CellAlignment::Left);
        }
    }
    table.set_content_arrangement(ContentArrangement::Dynamic);
    say(format_args!("{table}\n"))?;
    let Some((name, position)) = example else { return Ok(()) };
    let hints = hints(&name, position);
    Ok(say(typed::lines(data_dir, hints.iter().map(|(what, why)| (&**what, *why))))?)
}

/// What can be done about the event at `position`, to be typed as it stands.
fn hints(name: &str, position: Position) -> [(String, &'static str); 3] {
    [
        (format!("dead-letters show {name} {position}"), "the event itself"),
        (format!("dead-letters retry {name}"), "once the cause is mended"),
        (
            format!("dead-letters discard {name} --event {position} --reason \"not wanted\""),
            "to go on without it: what waits behind it takes effect",
        ),
    ]
}

fn row(group: DeadLetterGroup, first: Option<Position>, now: DateTime<Utc>) -> [String; 8] {
    [
        group.follower,
        group.error,
        count(group.failed),
        count(group.waiting),
        span((now - group.oldest).as_seconds_f64()),
        next_attempt(group.next_attempt_at, now),
        first.map(|position| count(position.get())).unwrap_or_default(),
        group.fingerprint,
    ]
}

/// When something is tried again by itself.
fn next_attempt(at: Option<DateTime<Utc>>, now: DateTime<Utc>) -> String {
    match at {
        Some(at) if at > now => format!("in {}", span((at - now).as_seconds_f64())),
        Some(_) => "now".into(),
        None => "when asked for".into(),
    }
}

async fn show(followers: &Followers, name: &str, position: Position, json: bool) -> Result<(), BoxError> {
    follower(followers, name).await?;
    let event = DeadLetters::Event(position);
    let mut letters = followers.dead_letters(Some(name), &event, MOST).await?;
    letters.extend(followers.discarded(Some(name), &event, MOST).await?);
    if letters.is_empty() {
        return Err(format!(
            "{name} has parked no event at position {position}: `dead-letters list` shows what it has"
        )
        .into());
    }
    for letter in &letters {
        match json {
            true => say(serde_json::to_string(&Letter::whole(letter))?)?,
            false => say(shown(letter, Utc::now()))?,
        }
    }
    Ok(())
}

/// An event, what keeps it, and its payload as it is stored.
fn shown(letter: &DeadLetter, now: DateTime<Utc>) -> String {
    let whose = if letter.by_stream { " (its stream: the key is not known)" } else { "" };
    let mut lines = vec![
        ("event", format!("{} at position {}", letter.event_type, letter.position)),
        ("stream", format!("{}, version {}", letter.stream, letter.version)),
        ("event id", letter.event_id.to_string()),
        ("key", format!("{}{whose}", letter.key)),
        ("state", format!("{}, parked {} ago", letter.state, span((now - letter.parked_at).as_seconds_f64()))),
    ];
    if let Some(error) = &letter.error {
        lines.push(("error", error.clone()));
        lines.push(("fingerprint", letter.fingerprint.clone().unwrap_or_default()));
        lines.push(("attempts", letter.attempts.to_string()));
    }
    match &letter.discarded {
        Some((by, at, reason)) => lines.push(("discarded", format!("by {by} at {at}: {reason}"))),
        None if letter.error.is_some() => lines.push(("next attempt", next_attempt(letter.next_attempt_at, now))),
        None => lines.push(("next attempt", "once what stands before it has taken effect".into())),
    }
    lines.push(("payload", letter.payload.clone()));
    let lines: Vec<String> = lines.into_iter().map(|(what, text)| format!("   {what:<14}{text}")).collect();
    format!("{}\n{}\n", letter.follower, lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn the_next_attempt_is_in_a_while_now_or_when_somebody_asks() {
        let now = Utc::now();
        let at = |seconds| Some(now + TimeDelta::seconds(seconds));

        assert_eq!(next_attempt(at(90), now), "in 1 min");
        assert_eq!(next_attempt(at(-1), now), "now");
        assert_eq!(next_attempt(None, now), "when asked for");
    }
}
