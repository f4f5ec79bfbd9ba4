//! Text from nodes that is shown to people.

/// Returns whether a character is a control character (C0, C1, DEL) or one of Unicode's category Cf
/// that hides, reorders or breaks text.
pub fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Returns at most `longest` characters of a text, without the characters that hide, reorder or
/// break text.
#[must_use]
pub fn shown(text: &str, longest: usize) -> String {
    text.chars().filter(|character| !is_invisible(*character)).take(longest).collect()
}
