//! Tables and plots for the docs, from what `--json` has written.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use annals::BoxError;
use plotters::prelude::*;
use serde::Deserialize;
use sqlx::Row;

use crate::{measure::Figures, server::Server};

/// A line of ours, of a peer, or of a growth curve.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Peer { case: String, package: String, per_s: Option<f64>, p50_us: Option<f64> },
    Growth { growth: String, x: f64, curve: String, unit: String, value: f64 },
    Case { case: String, ours: Figures, limit: Option<Figures>, ratio: Option<f64> },
}

/// Prints a table of `files` and writes plots into `folder`.
pub(crate) async fn report(files: &[PathBuf], folder: &Path) -> Result<(), BoxError> {
    fs::create_dir_all(folder)?;
    let mut lines: Vec<Line> = vec![];
    for file in files {
        let text = fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        for (nth, line) in text.lines().enumerate() {
            let failed = |error| format!("{}, line {}: {error}", file.display(), nth + 1);
            lines.push(serde_json::from_str(line).map_err(failed)?);
        }
    }
    println!("{}", environment().await?);
    println!("{}", cases(&lines, folder)?);
    print!("{}", peers(&lines, folder)?);
    print!("{}", growth(&lines, folder)?);
    Ok(())
}

/// What was measured on: hardware, versions, settings.
async fn environment() -> Result<String, BoxError> {
    let server = Server::open().await?;
    let mut conn = server.connect().await?;
    let names = ["server_version", "shared_buffers", "max_wal_size", "fsync", "synchronous_commit", "full_page_writes"];
    let mut settings = vec![];
    for name in names {
        let row = sqlx::query("select current_setting($1)").bind(name).fetch_one(&mut conn).await?;
        settings.push(format!("{name} {}", row.get::<String, _>(0)));
    }
    drop(conn);
    server.close().await?;
    let cores = std::thread::available_parallelism()?;
    let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let kilobytes: f64 = text.lines().next()?.split_whitespace().nth(1)?.parse().ok()?;
        Some(format!(", {:.0} GiB", kilobytes / 1_048_576.0))
    });
    let rustc = Command::new("rustc").arg("--version").output()?;
    let rustc = String::from_utf8_lossy(&rustc.stdout).trim().to_owned();
    let version = env!("CARGO_PKG_VERSION");
    Ok(format!(
        "annals {version}, {rustc}; {cores} cores{}, shared by client and server; PostgreSQL: {}.\n",
        memory.unwrap_or_default(),
        settings.join(", ")
    ))
}

fn cases(lines: &[Line], folder: &Path) -> Result<String, BoxError> {
    let mut text = String::from(
        "| case | events/s | p50 ms | p95 | p99 | p99.9 | limit, events/s | p50 ms | ratio | resident MB |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let ms = |us: Option<u64>| us.map(|us| format!("{:.2}", us as f64 / 1_000.0)).unwrap_or_default();
    let (mut bars, mut notes) = (vec![], vec![]);
    for line in lines {
        let Line::Case { case, ours, limit, ratio } = line else { continue };
        writeln!(
            text,
            "| {case} | {:.0} | {} | {} | {} | {} | {} | {} | {} | {} |",
            ours.per_s,
            ms(ours.p50_us),
            ms(ours.p95_us),
            ms(ours.p99_us),
            ms(ours.p999_us),
            limit.as_ref().map(|limit| format!("{:.0}", limit.per_s)).unwrap_or_default(),
            ms(limit.as_ref().and_then(|limit| limit.p50_us)),
            ratio.map(|ratio| format!("{:.0} %", ratio * 100.0)).unwrap_or_default(),
            ours.resident_mb.map(|mb| mb.to_string()).unwrap_or_default(),
        )?;
        bars.extend(ratio.map(|ratio| (case.clone(), ratio * 100.0)));
        notes.extend(ours.note.as_ref().map(|note| format!("\n{case}: {note}\n")));
    }
    text.push_str(&notes.concat());
    if !bars.is_empty() {
        draw_bars(&folder.join("cases.svg"), "Annals in % of its limit", &bars)?;
    }
    Ok(text)
}

/// One table over all cases, one plot a case.
fn peers(lines: &[Line], folder: &Path) -> Result<String, BoxError> {
    let (mut cases, mut packages): (Vec<&str>, Vec<&str>) = (vec![], vec![]);
    for line in lines {
        let Line::Peer { case, package, .. } = line else { continue };
        if !cases.contains(&case.as_str()) {
            cases.push(case);
        }
        if !packages.contains(&package.as_str()) {
            packages.push(package);
        }
    }
    if cases.is_empty() {
        return Ok(String::new());
    }
    let mut text = format!("| | {} |\n|{}\n", packages.join(" | "), " --- |".repeat(packages.len() + 1));
    for case in cases {
        // Of what comes at a fixed rate, the latency counts.
        let unit = if case == "visible" { "ms, p50" } else { "events/s" };
        let rate = |wanted: &str| {
            lines.iter().find_map(|line| match line {
                Line::Peer { case: of, package, p50_us, .. }
                    if of == case && package == wanted && case == "visible" =>
                {
                    p50_us.map(|us| us / 1_000.0)
                }
                Line::Peer { case: of, package, per_s, .. } if of == case && package == wanted => *per_s,
                _ => None,
            })
        };
        let cells: Vec<String> =
            packages.iter().map(|package| rate(package).map(|rate| format!("{rate:.0}")).unwrap_or_default()).collect();
        writeln!(text, "| {case}, {unit} | {} |", cells.join(" | "))?;
        let bars: Vec<_> =
            packages.iter().filter_map(|package| Some(((*package).to_owned(), rate(package)?))).collect();
        draw_bars(&folder.join(format!("peers-{case}.svg")), &format!("{case}, {unit}"), &bars)?;
    }
    text.push('\n');
    Ok(text)
}

/// One table an axis, and one plot for each unit along it.
fn growth(lines: &[Line], folder: &Path) -> Result<String, BoxError> {
    let mut axes: Vec<(&str, &str)> = vec![];
    for line in lines {
        if let Line::Growth { growth, unit, .. } = line
            && !axes.contains(&(growth, unit))
        {
            axes.push((growth, unit));
        }
    }
    let mut text = String::new();
    for (axis, of) in axes {
        writeln!(text, "| {axis} | of | {of} |\n| --- | --- | --- |")?;
        let mut bars = vec![];
        for line in lines {
            let Line::Growth { growth, x, curve, unit, value } = line else { continue };
            if growth == axis && unit == of {
                writeln!(text, "| {x:.0} | {curve} | {value:.0} |")?;
                bars.push((format!("{curve}, {x:.0}"), *value));
            }
        }
        writeln!(text)?;
        bars.sort_by(|(one, _), (other, _)| curve_of(one).cmp(curve_of(other)));
        let name: String = of.chars().filter(char::is_ascii_alphanumeric).collect();
        draw_bars(&folder.join(format!("growth-{axis}-{name}.svg")), &format!("{of}, by number of {axis}"), &bars)?;
    }
    Ok(text)
}

fn curve_of(label: &str) -> &str {
    label.rsplit_once(", ").map_or(label, |(curve, _)| curve)
}

/// Horizontal bars, each with its label and figure.
fn draw_bars(path: &Path, title: &str, bars: &[(String, f64)]) -> Result<(), BoxError> {
    const LABELS: i32 = 230;
    const BAR: i32 = 26;
    const WIDTH: i32 = 860;
    let longest = bars.iter().map(|(_, value)| *value).fold(1.0, f64::max);
    let area = SVGBackend::new(path, (WIDTH as u32, (bars.len() as i32 * BAR + 60) as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let font = |size: i32| ("sans-serif", size).into_font();
    area.draw(&Text::new(title.to_owned(), (12, 12), font(18)))?;
    for (nth, (label, value)) in bars.iter().enumerate() {
        let top = 46 + nth as i32 * BAR;
        let end = LABELS + ((WIDTH - LABELS - 110) as f64 * value / longest) as i32;
        let colour = if label == "annals" { RGBColor(36, 92, 160) } else { RGBColor(120, 160, 205) };
        area.draw(&Text::new(label.clone(), (12, top + 2), font(14)))?;
        area.draw(&Rectangle::new([(LABELS, top), (end, top + BAR - 8)], colour.filled()))?;
        area.draw(&Text::new(format!("{value:.0}"), (end + 8, top + 2), font(14)))?;
    }
    Ok(area.present()?)
}
