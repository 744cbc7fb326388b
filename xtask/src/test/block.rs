//! What one test binary says, shown at once when it has ended: lines of tests that run beside each other do not mix.

/// The lines of the binary that runs.
pub struct Block {
    /// Name of the part that it belongs to.
    part: String,
    lines: Vec<String>,
}

impl Block {
    pub fn of(part: &str) -> Self {
        Self { part: part.to_owned(), lines: Vec::new() }
    }

    /// One line of cargo's; with the first of the next binary, the one before is shown.
    pub fn read(&mut self, line: &str) {
        if begins(line) {
            match self.lines.first() {
                Some(first) if begins(first) => self.show(),
                // What cargo says before it runs anything is of use only where it runs nothing.
                _ => self.lines.clear(),
            }
        }
        self.lines.push(line.to_owned());
    }

    /// Shows what is there.
    pub fn show(&mut self) {
        let text = self.text();
        if !text.is_empty() {
            // In one piece: others print too.
            println!("{text}");
        }
    }

    /// The block under the name of its part, without empty lines around it; nothing where nothing was said.
    fn text(&mut self) -> String {
        let lines = std::mem::take(&mut self.lines).join("\n");
        match lines.trim_matches('\n') {
            "" => String::new(),
            lines => format!("[{}]\n{lines}\n", self.part),
        }
    }
}

/// Whether cargo says here which test binary it runs: `     Running tests/calls.rs (target/debug/deps/calls-0a1b)`.
fn begins(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("Running ") || line.starts_with("Doc-tests ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_is_shown_whole_and_under_its_part() {
        let mut block = Block::of("relay");
        for line in ["", "     Running tests/calls.rs (calls-0a1b)", "", "test rain ... ok", ""] {
            block.lines.push(line.to_owned());
        }
        assert_eq!(block.text(), "[relay]\n     Running tests/calls.rs (calls-0a1b)\n\ntest rain ... ok\n");
        assert_eq!(block.text(), "", "once");
    }

    #[test]
    fn the_next_binary_begins_another_block() {
        let mut block = Block::of("relay");
        let finished = "    Finished `test` profile in 0.1s";
        for line in [finished, "     Running tests/calls.rs (calls-0a1b)", "test rain ... ok"] {
            block.read(line);
        }
        assert_eq!(block.lines, ["     Running tests/calls.rs (calls-0a1b)", "test rain ... ok"]);
        block.read("     Running tests/model.rs (model-0a1b)");
        assert_eq!(block.lines, ["     Running tests/model.rs (model-0a1b)"]);
        assert!(!begins("test Running ... ok") && begins("   Doc-tests ihuza_core"));
    }

    #[test]
    fn what_cargo_says_is_shown_where_nothing_ran() {
        let mut block = Block::of("relay");
        block.read("error: could not compile `ihuza-relay`");
        assert_eq!(block.text(), "[relay]\nerror: could not compile `ihuza-relay`\n");
    }
}
