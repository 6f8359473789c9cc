//! Compares read models with a clean fold of the log.

use std::{path::Path, process::ExitCode};

use annals::{BoxError, Difference, Verified};

use super::{model::model, projections::settled, rebuild::is_view};
use crate::{
    figures::count,
    say::{note, say_if_read},
    shop::Shop,
    tables::table,
    typed,
};

/// How much of a row that differs is shown.
const SHOWN: usize = 200;

/// Verifies the read model `name`, or all of them, one after the other. Exit code 1 when any differs.
///
/// # Errors
/// There is no such read model, it cannot be compared, or Postgres cannot be asked.
pub(crate) async fn run(shop: &Shop, data_dir: &Path, name: Option<&str>, json: bool) -> Result<ExitCode, BoxError> {
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
            true => say_if_read(serde_json::to_string(&verified)?)?,
            false => found.push(verified),
        }
    }
    if !json {
        say_if_read(format_args!("{}", shown(&found)))?;
    }
    for difference in found.iter().filter_map(|verified| described(verified, data_dir)) {
        note(difference);
    }
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn shown(found: &[Verified]) -> comfy_table::Table {
    // A comparison ends at the first row that differs.
    let rows = if found.iter().all(|verified| verified.equal) { "rows" } else { "compared" };
    let mut table = table(["name", rows, "position", "compared with a clean fold of the log"]);
    for verified in found {
        let (rows, position) = (count(verified.rows as i64), count(verified.position.get()));
        let outcome = if verified.equal { "equal" } else { "differs" };
        table.add_row([verified.name.clone(), rows, position, outcome.into()]);
    }
    table
}

/// The first row that differs, if there is one, and what mends it.
fn described(verified: &Verified, data_dir: &Path) -> Option<String> {
    let Difference { table, key, live, clean } = verified.first_difference.as_ref()?;
    let name = &verified.name;
    let mut text = format!(
        "{name} differs first in {table}, {key}:\n   there is      {}\n   there must be {}",
        row(live.as_deref()),
        row(clean.as_deref())
    );
    let rebuild = format!("projections rebuild {name}");
    if let Some(key) = document(name, table, key) {
        let rebuild = typed::command(data_dir, &format!("{rebuild} --key {}", typed::quoted(&key)));
        text += &format!("\nthis document is mended by\n   {rebuild}");
    }
    Some(text + &format!("\nall of it is mended by\n   {}", typed::command(data_dir, &rebuild)))
}

/// The key of a view's document, whose primary key as JSON is `key`.
fn document(name: &str, table: &str, key: &str) -> Option<String> {
    let [key]: [String; 1] = serde_json::from_str(key).ok().filter(|_| is_view(name) && table == "documents")?;
    Some(key)
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

        let text = described(&verified, Path::new(".data")).unwrap();

        assert!(text.starts_with("sales differs first in orders, [\"7\"]:\n   there is      no such row\n"), "{text}");
        assert!(text.contains(&format!("there must be {}…\n", "x".repeat(200))), "{text}");
        assert!(
            text.ends_with("all of it is mended by\n   cargo run -p example-orders -- projections rebuild sales"),
            "{text}"
        );
        assert!(!text.contains("--key"), "{text}");
        let table = shown(std::slice::from_ref(&verified)).to_string();
        assert!(table.contains("differs") && table.contains("┆ compared ┆") && !table.contains("rows"), "{table}");
        assert!(shown(&[Verified { equal: true, ..verified }]).to_string().contains("rows"));
    }

    #[test]
    fn a_document_is_named_as_it_is_typed() {
        assert_eq!(document("department_sales", "documents", "[\"DAIRY EGGS\"]").as_deref(), Some("DAIRY EGGS"));
        assert_eq!(document("order_search", "orders", "[\"7\"]"), None);
        assert_eq!(document("open_orders", "checkpoints", "pairs"), None);
    }
}
