//! Charts as inline SVG: drawn by plotters, named for those who cannot see them, coloured by the page.
//!
//! Guarantee: whatever the values are (none, zero, huge, not finite), the SVG is well formed and draws shapes that have
//! a size. Colours are marks that the page's style replaces, so that one drawing serves light and dark.

use plotters::prelude::{
    DrawingArea, IntoDrawingArea, IntoFont, PathElement, RGBColor, Rectangle, SVGBackend,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, TextStyle};

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// Width of every chart in its own units; small enough that its text can be read on a phone.
const WIDTH: i32 = 330;
const ROW_HEIGHT: i32 = 46;
const BAR_HEIGHT: i32 = 16;
const COLUMNS_HEIGHT: i32 = 230;
/// plotters writes a font's size divided by 1.24.
const FONT_SIZE: f64 = 15.0 * 1.24;
const FONT_SIZE_SMALL: f64 = 12.5 * 1.24;

const TEXT: RGBColor = RGBColor(0x11, 0x11, 0x11);
const MUTED: RGBColor = RGBColor(0x77, 0x77, 0x77);
const TRACK: RGBColor = RGBColor(0xEE, 0xEE, 0xEE);
const LIMIT: RGBColor = RGBColor(0xE5, 0x3E, 0x3E);

/// Whose bar it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Lambda,
    Kappa,
    Neither,
}

impl Tone {
    fn colour(self) -> RGBColor {
        match self {
            Tone::Lambda => RGBColor(0x2B, 0x6C, 0xB0),
            Tone::Kappa => RGBColor(0xC0, 0x56, 0x21),
            Tone::Neither => RGBColor(0x4A, 0x55, 0x68),
        }
    }
}

/// One bar.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) value: f64,
    /// The value as people read it.
    pub(super) text: String,
    pub(super) tone: Tone,
}

/// What a chart is called.
#[derive(Debug, Clone)]
pub(super) struct Caption<'a> {
    /// Unique on the page.
    pub(super) id: &'a str,
    pub(super) title: &'a str,
    pub(super) description: &'a str,
}

/// Draws bars from zero, one below the other, all on one scale; `limit` is a line across all of them.
pub(super) fn bars(caption: &Caption<'_>, bars: &[Bar], limit: Option<f64>) -> String {
    let height = ROW_HEIGHT * bars.len().max(1) as i32 + 6;
    let values = bars.iter().map(|bar| bar.value).chain(limit);
    let scale = Scale::of(values, WIDTH);
    draw(caption, height, |area| {
        for (index, bar) in bars.iter().enumerate() {
            let top = index as i32 * ROW_HEIGHT + 4;
            text(area, &bar.label, (0, top), (HPos::Left, FONT_SIZE, TEXT));
            text(area, &bar.text, (WIDTH, top), (HPos::Right, FONT_SIZE, TEXT));
            let bar_top = top + 20;
            rectangle(area, (0, bar_top), (WIDTH, bar_top + BAR_HEIGHT), TRACK);
            let end = scale.length(bar.value).max(2); // what is zero is drawn as next to nothing, and not as missing
            rectangle(area, (0, bar_top), (end, bar_top + BAR_HEIGHT), bar.tone.colour());
            if let Some(limit) = limit {
                let x = scale.length(limit).min(WIDTH - 2);
                line(area, (x, bar_top - 3), (x, bar_top + BAR_HEIGHT + 3), LIMIT);
            }
        }
    })
}

/// One place of a chart of columns: its label, and what stands side by side there.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) label: String,
    /// `None` where there is nothing to draw.
    pub(super) lambda: Option<f64>,
    pub(super) kappa: Option<f64>,
}

/// Draws groups of two columns from zero. `format` writes the top of the scale.
pub(super) fn columns(caption: &Caption<'_>, groups: &[Group], format: fn(f64) -> String) -> String {
    let (top, bottom) = (44, COLUMNS_HEIGHT - 26);
    let values = groups.iter().flat_map(|group| [group.lambda, group.kappa]).flatten();
    let scale = Scale::of(values, bottom - top);
    let place = f64::from(WIDTH) / groups.len().max(1) as f64;
    let width = ((place * 0.4) as i32).clamp(1, 60);
    let labels_every = groups.len().div_ceil(4).max(1);
    draw(caption, COLUMNS_HEIGHT, |area| {
        legend(area);
        text(area, &format(scale.greatest), (0, 24), (HPos::Left, FONT_SIZE_SMALL, MUTED));
        line(area, (0, top), (WIDTH, top), TRACK);
        for (index, group) in groups.iter().enumerate() {
            let middle = ((index as f64 + 0.5) * place) as i32;
            let sides = [(group.lambda, middle - width, Tone::Lambda), (group.kappa, middle, Tone::Kappa)];
            for (value, left, tone) in sides {
                let left = left.clamp(0, WIDTH - width);
                if let Some(value) = value {
                    let height = scale.length(value).max(2);
                    rectangle(area, (left, bottom - height), (left + width, bottom), tone.colour());
                }
            }
            if index % labels_every == 0 {
                // The first and the last would hang over the edge.
                let x = middle.clamp(36, WIDTH - 36);
                text(area, &group.label, (x, bottom + 6), (HPos::Center, FONT_SIZE_SMALL, MUTED));
            }
        }
        line(area, (0, bottom), (WIDTH, bottom), MUTED);
    })
}

fn legend(area: &Area<'_>) {
    for (x, label, tone) in [(0, "lambda", Tone::Lambda), (90, "kappa", Tone::Kappa)] {
        rectangle(area, (x, 3), (x + 12, 15), tone.colour());
        text(area, label, (x + 18, 1), (HPos::Left, FONT_SIZE_SMALL, TEXT));
    }
}

/// From values to lengths.
#[derive(Debug, Clone, Copy)]
struct Scale {
    greatest: f64,
    length: i32,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64>, length: i32) -> Self {
        let greatest = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        Self { greatest, length }
    }

    /// Returns a length from 0 to the whole; what is negative or no number has none.
    fn length(self, value: f64) -> i32 {
        let share = if self.greatest > 0.0 { value / self.greatest } else { 0.0 };
        if share.is_finite() { (share.clamp(0.0, 1.0) * f64::from(self.length)).round() as i32 } else { 0 }
    }
}

fn rectangle(area: &Area<'_>, from: (i32, i32), to: (i32, i32), colour: RGBColor) {
    // Drawing into a text in memory cannot fail.
    let _ = area.draw(&Rectangle::new([from, to], colour.filled()));
}

fn line(area: &Area<'_>, from: (i32, i32), to: (i32, i32), colour: RGBColor) {
    let _ = area.draw(&PathElement::new([from, to], colour.stroke_width(2)));
}

fn text(area: &Area<'_>, text: &str, at: (i32, i32), (side, size, colour): (HPos, f64, RGBColor)) {
    let style: TextStyle<'_> = ("sans-serif", size).into_font().color(&colour);
    let _ = area.draw_text(text, &style.pos(Pos::new(side, VPos::Top)), at);
}

/// Draws and names the chart.
fn draw(caption: &Caption<'_>, height: i32, shapes: impl FnOnce(&Area<'_>)) -> String {
    let mut svg = String::new();
    {
        let size = (WIDTH.unsigned_abs(), height.unsigned_abs());
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        shapes(&area);
        let _ = area.present();
    }
    let shapes = svg.split_once('>').map_or("", |(_, shapes)| shapes).trim_end();
    let Caption { id, title, description } = caption;
    let (title, description) = (escaped(title), escaped(description));
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" \
         aria-labelledby=\"{id}-title {id}-description\">\n<title id=\"{id}-title\">{title}</title>\n\
         <desc id=\"{id}-description\">{description}</desc>{shapes}\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::compare::paths::units;

    fn caption() -> Caption<'static> {
        Caption { id: "c", title: "CPU <&> \"time\"", description: "What it took" }
    }

    fn bar(value: f64) -> Bar {
        Bar { label: "a & <b>".to_owned(), value, text: units::seconds(value), tone: Tone::Lambda }
    }

    /// Reads an SVG strictly enough to find a tag that is not closed, an attribute that is not quoted, a bare `&`.
    fn tags(svg: &str) -> Vec<(String, Vec<(String, String)>)> {
        let (mut rest, mut open, mut found) = (svg, Vec::new(), Vec::new());
        while let Some(start) = rest.find('<') {
            assert!(
                !rest[..start]
                    .replace("&amp;", "")
                    .replace("&lt;", "")
                    .replace("&gt;", "")
                    .replace("&quot;", "")
                    .contains('&')
            );
            let end = rest[start..].find('>').expect("the tag ends") + start;
            let tag = &rest[start + 1..end];
            rest = &rest[end + 1..];
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name));
                continue;
            }
            let name: String = tag.chars().take_while(char::is_ascii_alphanumeric).collect();
            let mut attributes = Vec::new();
            let mut text = tag[name.len()..].trim_end_matches('/');
            while let Some((key, after)) = text.split_once("=\"") {
                let (value, left) = after.split_once('"').expect("the value ends");
                attributes.push((key.trim().to_owned(), value.to_owned()));
                text = left;
            }
            assert!(text.trim().is_empty(), "{tag}");
            if !tag.ends_with('/') {
                open.push(name.clone());
            }
            found.push((name, attributes));
        }
        assert!(open.is_empty(), "left open: {open:?}");
        found
    }

    /// Every rectangle lies within the drawing and has a size.
    fn check(svg: &str, height: f64) {
        let tags = tags(svg);
        let number = |attributes: &[(String, String)], key: &str| -> f64 {
            let found = attributes.iter().find(|(name, _)| name == key);
            found.expect("the attribute").1.parse().expect("a number")
        };
        let rectangles: Vec<_> = tags.iter().filter(|(name, _)| name == "rect").collect();
        assert!(!rectangles.is_empty());
        for (_, attributes) in rectangles {
            let [x, y, width, tall] = ["x", "y", "width", "height"].map(|key| number(attributes, key));
            assert!(width > 0.0 && tall > 0.0, "{svg}");
            assert!(
                x >= 0.0 && y >= 0.0 && x + width <= f64::from(WIDTH) + 1.0 && y + tall <= height,
                "{svg}"
            );
        }
        assert!(svg.contains("role=\"img\"") && svg.contains("<title ") && svg.contains("<desc "));
    }

    #[test]
    fn bars_are_well_formed_whatever_the_values() {
        for values in [
            vec![0.0, 0.0],
            vec![1e308, 1.0],
            vec![f64::NAN, f64::INFINITY],
            vec![-5.0, 1e-300],
            vec![3.0],
            vec![1.0; 40],
        ] {
            let drawn: Vec<Bar> = values.iter().map(|value| bar(*value)).collect();
            for limit in [None, Some(0.0), Some(2e9), Some(f64::NAN)] {
                check(&bars(&caption(), &drawn, limit), f64::from(ROW_HEIGHT) * drawn.len() as f64 + 7.0);
            }
        }
    }

    #[test]
    fn columns_of_one_hour_and_of_a_month_are_well_formed() {
        for hours in [1, 2, 48, 744] {
            let group = |index: u32| Group {
                label: format!("hour {index}"),
                lambda: Some(f64::from(index) * 1e6),
                kappa: index.is_multiple_of(3).then_some(0.0),
            };
            let groups: Vec<Group> = (0..hours).map(group).collect();
            check(&columns(&caption(), &groups, units::seconds), f64::from(COLUMNS_HEIGHT) + 1.0);
        }
    }

    #[test]
    fn the_longer_bar_is_of_the_greater_value() {
        let scale = Scale::of([3.0, 12.0].into_iter(), 400);
        assert_eq!((scale.length(3.0), scale.length(12.0)), (100, 400));
    }

    proptest! {
        #[test]
        fn no_value_draws_outside(values in prop::collection::vec(prop::num::f64::ANY, 1..6), limit in prop::option::of(prop::num::f64::ANY)) {
            let drawn: Vec<Bar> = values.iter().map(|value| bar(*value)).collect();
            check(&bars(&caption(), &drawn, limit), f64::from(ROW_HEIGHT) * drawn.len() as f64 + 7.0);
        }
    }
}
