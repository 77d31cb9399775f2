//! The known word that somebody who wrote an unknown one most likely meant.

/// The nearest of `known`: one that `word` abbreviates (`token` for `token_file`), or the one with
/// the fewest letters to change; `None` when none is near.
pub(super) fn nearest<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str> + Clone,
) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    // Whoever wrote more than this did not mistype a key of ours.
    if word.len() > 64 {
        return None;
    }
    let most = 1 + word.chars().count() / 4;
    let close = known.clone().into_iter().map(|known| (distance(&word, known), known));
    close.filter(|(changes, _)| *changes <= most).min().map(|(_, known)| known).or_else(|| {
        let longer = |known: &&str| {
            known.strip_prefix(word.as_str()).is_some_and(|rest| rest.starts_with('_'))
        };
        known.into_iter().find(longer)
    })
}

/// How many letters must be added, removed or changed (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_found() {
        let known = ["url", "ping_interval", "ping_timeout", "token_file"];
        for (word, meant) in [
            ("ping_intervall", Some("ping_interval")),
            ("pingInterval", Some("ping_interval")),
            ("ping-timeout", Some("ping_timeout")),
            ("token", Some("token_file")),
            ("uri", Some("url")),
            ("compression", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
        assert_eq!(nearest(&"é".repeat(10_000), known), None);
    }
}
