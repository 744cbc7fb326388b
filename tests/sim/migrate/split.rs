//! Cuts an SQL file into its statements, by the lexical rules of PostgreSQL: a semicolon inside a string, a quoted name,
//! a comment, a dollar quote or a `begin atomic` body ends nothing.

/// One statement, without its semicolon, and the line of the file (from 1) that it begins on.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    pub sql: String,
    pub line: usize,
}

/// The statements of a file. What holds nothing but comments is no statement.
pub fn split(sql: &str) -> Vec<Statement> {
    let mut statements = Vec::new();
    let mut rest = sql;
    let mut line = 1;
    while !rest.is_empty() {
        let end = statement_end(rest);
        let (piece, after) = rest.split_at(end);
        let start = skip_blank(piece);
        let (blank, body) = piece.split_at(start);
        line += newlines(blank);
        if !body.is_empty() {
            // The comment above a statement belongs to it; the blank lines do not.
            let text = piece.trim();
            statements.push(Statement { sql: text.to_owned(), line: line - newlines(blank.trim_start()) });
        }
        line += newlines(body);
        rest = after.strip_prefix(';').unwrap_or(after);
    }
    statements
}

fn newlines(text: &str) -> usize {
    text.matches('\n').count()
}

/// Length of the white space and comments that `text` begins with.
fn skip_blank(text: &str) -> usize {
    let mut at = 0;
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let next = rest.trim_start();
        at += rest.len() - next.len();
        match comment(next) {
            Some(length) => at += length,
            None => return at,
        }
    }
}

/// Where the first statement of `text` ends: at its semicolon, or at the end of the text.
fn statement_end(text: &str) -> usize {
    let mut at = 0;
    let mut words = Atomic::default();
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with(';') && !words.inside() {
            return at;
        }
        let before = text.get(..at).unwrap_or_default();
        at += match token(rest, before) {
            Token::Word(length) => {
                words.see(rest.get(..length).unwrap_or_default());
                length
            }
            Token::Other(length) => length,
        };
    }
    text.len()
}

/// Follows `begin atomic ... end`, the only place where a semicolon stands inside a statement unquoted.
#[derive(Default)]
struct Atomic {
    last_was_begin: bool,
    depth: usize,
}

impl Atomic {
    fn inside(&self) -> bool {
        self.depth > 0
    }

    fn see(&mut self, word: &str) {
        let is = |other: &str| word.eq_ignore_ascii_case(other);
        if is("atomic") && self.last_was_begin {
            self.depth = 1;
        } else if self.inside() && is("case") {
            self.depth += 1;
        } else if self.inside() && is("end") {
            self.depth -= 1;
        }
        self.last_was_begin = is("begin");
    }
}

enum Token {
    Word(usize),
    Other(usize),
}

fn token(rest: &str, before: &str) -> Token {
    let Some(first) = rest.chars().next() else {
        return Token::Other(0);
    };
    if let Some(length) = comment(rest) {
        return Token::Other(length);
    }
    match first {
        '\'' => {
            let escapes = before.ends_with(['e', 'E']) && !before.trim_end_matches(['e', 'E']).ends_with(is_word);
            Token::Other(quoted(rest, '\'', escapes))
        }
        '"' => Token::Other(quoted(rest, '"', false)),
        '$' if !before.ends_with(is_word) => Token::Other(dollar_quoted(rest).unwrap_or(1)),
        _ if first.is_alphabetic() || first == '_' => Token::Word(rest.find(|c| !is_word(c)).unwrap_or(rest.len())),
        _ => Token::Other(first.len_utf8()),
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

/// Length of the comment that `rest` begins with, if it does.
fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("--") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if !rest.starts_with("/*") {
        return None;
    }
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(inner) = rest.get(at..).filter(|inner| !inner.is_empty()) {
        if inner.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if inner.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += inner.chars().next().map_or(1, char::len_utf8);
        }
    }
    Some(rest.len())
}

/// Length of a quoted piece; a doubled quote stays inside, and with `escapes` a backslash takes the next character along.
fn quoted(rest: &str, quote: char, escapes: bool) -> usize {
    let mut chars = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if escapes && c == '\\' {
            chars.next();
        } else if c == quote {
            if chars.peek().is_some_and(|(_, next)| *next == quote) {
                chars.next();
            } else {
                return at + c.len_utf8();
            }
        }
    }
    rest.len()
}

/// Length of `$tag$ ... $tag$`, if `rest` begins with one.
fn dollar_quoted(rest: &str) -> Option<usize> {
    let inner = rest.get(1..)?;
    let tag_length = inner.find('$')?;
    let tag = inner.get(..tag_length)?;
    let proper = !tag.starts_with(|c: char| c.is_ascii_digit()) && tag.chars().all(|c| c.is_alphanumeric() || c == '_');
    if !proper {
        return None;
    }
    let delimiter = rest.get(..tag_length + 2)?;
    let body = rest.get(delimiter.len()..)?;
    let end = body.find(delimiter).map_or(rest.len(), |at| delimiter.len() + at + delimiter.len());
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sql: &str, expected: &[(&str, usize)]) {
        let found = split(sql);
        let found: Vec<(&str, usize)> = found.iter().map(|s| (s.sql.as_str(), s.line)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn semicolons_end_statements_and_lines_are_counted() {
        check("select 1;\n\nselect 2", &[("select 1", 1), ("select 2", 3)]);
        check(";;\n;select 1;", &[("select 1", 2)]);
    }

    #[test]
    fn a_comment_belongs_to_the_statement_below_it() {
        check("-- why; not\nselect 1;\n-- the end;\n", &[("-- why; not\nselect 1", 1)]);
        check("/* a /* nested; */ b; */ select 1", &[("/* a /* nested; */ b; */ select 1", 1)]);
        check("\n\n-- one\n\nselect 1", &[("-- one\n\nselect 1", 3)]);
    }

    #[test]
    fn quotes_hide_semicolons() {
        check("select 'a;''b;' ; select \"c;\"", &[("select 'a;''b;'", 1), ("select \"c;\"", 1)]);
        check(r"select e'it\';s'; select 2", &[(r"select e'it\';s'", 1), ("select 2", 1)]);
        check(r"select 'c:\'; select 2", &[(r"select 'c:\'", 1), ("select 2", 1)]);
    }

    #[test]
    fn dollar_quotes_hide_everything() {
        let body = "create function f() as $body$ begin; $x$ ; $x$ 'it''s; $body$ language sql";
        check(&format!("{body};select 2"), &[(body, 1), ("select 2", 1)]);
        check("select $1; select a$b$; select 3", &[("select $1", 1), ("select a$b$", 1), ("select 3", 1)]);
    }

    #[test]
    fn an_atomic_body_is_one_statement() {
        let body = "create function f() begin atomic select case when true then 1 end; select 2; end";
        check(&format!("{body}; select 3"), &[(body, 1), ("select 3", 1)]);
        check("begin; select 1; end", &[("begin", 1), ("select 1", 1), ("end", 1)]);
    }
}
