//! Plots: horizontal bars, as SVG by hand, which is less code than a library's settings would be.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const LABELS: f64 = 270.0;
const FIGURES: f64 = 90.0;
const ROW: f64 = 24.0;
const TOP: f64 = 40.0;

/// Figures that differ by more than this are shown on a scale of powers of ten.
const FAR_APART: f64 = 50.0;

/// A bar for each figure.
pub(crate) fn bars(title: &str, bars: &[(String, f64)]) -> String {
    let figures = || bars.iter().map(|(_, figure)| *figure).filter(|figure| *figure > 0.0);
    let (least, most) = (figures().fold(f64::MAX, f64::min), figures().fold(0.0, f64::max));
    let powers = most > least * FAR_APART;
    let part = |figure: f64| match powers {
        _ if figure <= 0.0 => 0.0,
        true => {
            let floor = least.log10().floor();
            (figure.log10() - floor) / (most.log10() - floor)
        }
        false => figure / most,
    };
    let height = TOP + ROW * bars.len() as f64 + 8.0;
    let title = if powers { format!("{title} (scale of powers of ten)") } else { title.to_owned() };
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="10" y="24" font-size="15" font-weight="bold" fill="#222222">{}</text>
"##,
        escaped(&title)
    );
    for (index, (label, figure)) in bars.iter().enumerate() {
        let y = TOP + ROW * index as f64;
        let width = (part(*figure) * (WIDTH - LABELS - FIGURES)).max(1.0);
        let fill = if label.contains("distlock") { "#1f6feb" } else { "#9aa4b2" };
        let _ = writeln!(
            svg,
            r##"<text x="{}" y="{}" text-anchor="end" fill="#222222">{}</text>
<rect x="{LABELS}" y="{}" width="{width:.1}" height="{}" fill="{fill}"/>
<text x="{:.1}" y="{}" fill="#222222">{}</text>"##,
            LABELS - 8.0,
            y + 16.0,
            escaped(label),
            y + 3.0,
            ROW - 6.0,
            LABELS + width + 6.0,
            y + 16.0,
            number(*figure),
        );
    }
    svg + "</svg>\n"
}

/// Three digits that count, and thousands in groups.
pub(crate) fn number(figure: f64) -> String {
    if figure.is_nan() {
        return "–".to_owned();
    }
    let digits = match figure.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{figure:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        let left = whole.len() - index;
        if index > 0 && left.is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (figure, text) in [
            (0.0, "0"),
            (0.0312, "0.031"),
            (1.234, "1.23"),
            (45.67, "45.7"),
            (1_234_567.8, "1,234,568"),
        ] {
            assert_eq!(number(figure), text);
        }
    }

    #[test]
    fn every_figure_has_a_bar() {
        let figures =
            [("a<b".to_owned(), 1.0), ("distlock".to_owned(), 1e6), ("none".to_owned(), 0.0)];
        let svg = bars("all", &figures);
        assert_eq!(svg.matches("<rect").count(), 4);
        assert!(svg.contains("a&lt;b") && svg.contains("powers of ten"), "{svg}");
    }
}
