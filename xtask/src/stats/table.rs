//! A table for people: columns as wide as they must be, numbers to the right.

/// Header and rows; `if_none` instead where there are no rows.
pub fn lines(names: &[String], rows: &[Vec<String>], if_none: &str) -> Vec<String> {
    if rows.is_empty() {
        return vec![if_none.to_owned()];
    }
    let column = |place: usize| rows.iter().filter_map(move |row| row.get(place));
    let layout: Vec<(usize, bool)> = names
        .iter()
        .enumerate()
        .map(|(place, name)| {
            let width = column(place).chain([name]).map(|cell| cell.chars().count()).max().unwrap_or_default();
            (width, column(place).all(|cell| is_number(cell)))
        })
        .collect();
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(&layout).map(|(cell, (width, right))| {
            let gap = " ".repeat(width.saturating_sub(cell.chars().count()));
            if *right { gap + cell } else { cell.clone() + &gap }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    std::iter::once(line(names)).chain(rows.iter().map(|row| line(row))).collect()
}

fn is_number(cell: &str) -> bool {
    cell == "-" || cell.parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_left_and_numbers_right() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let lines = lines(&row(["channel", "messages"]), &[row(["sms", "12"]), row(["whatsapp", "-"])], "none");
        assert_eq!(lines, ["channel   messages", "sms             12", "whatsapp         -"]);
    }

    #[test]
    fn nothing_is_said_in_words() {
        assert_eq!(lines(&["a".to_owned()], &[], "nothing failed"), ["nothing failed"]);
    }
}
