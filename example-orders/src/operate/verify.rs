//! Compares read models with a clean fold of the log.

use std::process::ExitCode;

use annals::{BoxError, Difference, Verified};

use super::{model::model, projections::settled};
use crate::{
    figures::count,
    say::{note, say},
    shop::Shop,
    tables::table,
};

/// How much of a row that differs is shown.
const SHOWN: usize = 200;

/// Verifies the read model `name`, or all of them, one after the other. Exit code 1 when any differs.
///
/// # Errors
/// There is no such read model, it cannot be compared, or Postgres cannot be asked.
pub(crate) async fn run(shop: &Shop, name: Option<&str>, json: bool) -> Result<ExitCode, BoxError> {
    let followers = shop.app.store().followers();
    let names: Vec<String> = match name {
        Some(name) => vec![model(&followers, name).await?.name],
        None => settled(shop, &followers).await?.into_iter().map(|model| model.name).collect(),
    };
    let (mut found, mut equal) = (vec![], true);
    for name in names {
        let verified = shop.app.verify(&name).await?;
        equal &= verified.equal;
        match json {
            true => say(serde_json::to_string(&verified)?)?,
            false => found.push(verified),
        }
    }
    if !json {
        say(format_args!("{}", shown(&found)))?;
    }
    for difference in found.iter().filter_map(described) {
        note(difference);
    }
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn shown(found: &[Verified]) -> comfy_table::Table {
    let mut table = table(["name", "rows", "position", "compared with a clean fold of the log"]);
    for verified in found {
        let (rows, position) = (count(verified.rows as i64), count(verified.position.get()));
        let outcome = if verified.equal { "equal" } else { "differs" };
        table.add_row([verified.name.clone(), rows, position, outcome.into()]);
    }
    table
}

/// The first row that differs, if there is one, and what mends it.
fn described(verified: &Verified) -> Option<String> {
    let Difference { table, key, live, clean } = verified.first_difference.as_ref()?;
    let name = &verified.name;
    Some(format!(
        "{name} differs first in {table}, {key}:\n   there is      {}\n   there must be {}\n`projections rebuild {name}` mends it",
        row(live.as_deref()),
        row(clean.as_deref())
    ))
}

fn row(row: Option<&str>) -> String {
    let Some(row) = row else { return "no such row".into() };
    let mut shown: String = row.chars().take(SHOWN).collect();
    if shown.len() < row.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use annals::Position;

    use super::*;

    #[test]
    fn a_difference_is_told_with_both_rows_and_what_mends_it() {
        let difference =
            Difference { table: "orders".into(), key: "[\"7\"]".into(), live: None, clean: Some("x".repeat(300)) };
        let verified = Verified {
            name: "sales".into(),
            equal: false,
            rows: 3,
            position: Position::new(9),
            first_difference: Some(difference),
        };

        let text = described(&verified).unwrap();

        assert!(text.starts_with("sales differs first in orders, [\"7\"]:\n   there is      no such row\n"), "{text}");
        assert!(text.contains(&format!("there must be {}…\n", "x".repeat(200))), "{text}");
        assert!(text.ends_with("`projections rebuild sales` mends it"), "{text}");
        assert!(shown(&[verified]).to_string().contains("differs"));
    }
}
