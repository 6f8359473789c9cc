//! Tables on the terminal.

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

/// An empty table; every column but the first holds figures.
pub(crate) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}
