//! The layers of the configuration, and typed access to single keys.

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use config::{Config, Environment, File, FileFormat, Map, Value, ValueKind};

use super::SettingsError;

/// The defaults. They define which keys exist.
pub(super) const DEFAULTS: &str = include_str!("defaults.toml");
const PREFIX: &str = "REDIAL_";

/// Environment variables by name.
pub(super) type Variables = HashMap<String, String>;

/// The merged configuration. Keys are `section.name`. Every value is parsed from text, because the
/// environment's values are text and a file's may be.
pub(super) struct Source(Config);

impl Source {
    /// Merges the defaults, a file (its name and text) and the environment; later ones override. Unknown keys
    /// are an error.
    pub(super) fn new(file: Option<(&str, &str)>, variables: &Variables) -> Result<Source, SettingsError> {
        let known = Known(parse("the defaults", DEFAULTS)?);
        let mut layers = Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
        if let Some((name, text)) = file {
            known.require_all(name, &parse(name, text)?)?;
            layers = layers.add_source(File::from_str(text, FileFormat::Toml));
        }
        let variables = known.settings_among(variables)?;
        let environment = Environment::with_prefix("REDIAL").prefix_separator("_").separator("__");
        Ok(Source(layers.add_source(environment.source(Some(variables))).build()?))
    }

    pub(super) fn text(&self, key: &str) -> Result<String, SettingsError> {
        self.value(key)?.into_string().map_err(|_| SettingsError::value(key, "expected a single value"))
    }

    pub(super) fn optional(&self, key: &str) -> Result<Option<String>, SettingsError> {
        Ok(Some(self.text(key)?).filter(|text| !text.is_empty()))
    }

    pub(super) fn list(&self, key: &str) -> Result<Vec<String>, SettingsError> {
        let expected = |_| SettingsError::value(key, "expected a list");
        let value = self.value(key)?;
        if let ValueKind::Array(items) = value.kind {
            return items.into_iter().map(|item| item.into_string().map_err(expected)).collect();
        }
        let text = value.into_string().map_err(expected)?;
        Ok(text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect())
    }

    pub(super) fn parse<T: FromStr<Err: Display>>(&self, key: &str) -> Result<T, SettingsError> {
        parsed(key, &self.text(key)?)
    }

    pub(super) fn parse_optional<T: FromStr<Err: Display>>(
        &self,
        key: &str,
    ) -> Result<Option<T>, SettingsError> {
        self.optional(key)?.map(|text| parsed(key, &text)).transpose()
    }

    pub(super) fn parse_list<T: FromStr<Err: Display>>(&self, key: &str) -> Result<Vec<T>, SettingsError> {
        self.list(key)?.iter().map(|text| parsed(key, text)).collect()
    }

    /// Parses a value and checks that it is within `bounds`.
    pub(super) fn within<T>(&self, key: &str, bounds: RangeInclusive<T>) -> Result<T, SettingsError>
    where
        T: FromStr<Err: Display> + PartialOrd + Display,
    {
        let value = self.parse(key)?;
        within(key, value, &bounds)
    }

    pub(super) fn within_optional<T>(
        &self,
        key: &str,
        bounds: RangeInclusive<T>,
    ) -> Result<Option<T>, SettingsError>
    where
        T: FromStr<Err: Display> + PartialOrd + Display,
    {
        self.parse_optional(key)?.map(|value| within(key, value, &bounds)).transpose()
    }

    pub(super) fn duration(
        &self,
        key: &str,
        bounds: RangeInclusive<Duration>,
    ) -> Result<Duration, SettingsError> {
        duration(key, self.parse(key)?, &bounds)
    }

    pub(super) fn optional_duration(
        &self,
        key: &str,
        bounds: RangeInclusive<Duration>,
    ) -> Result<Option<Duration>, SettingsError> {
        self.parse_optional(key)?.map(|value| duration(key, value, &bounds)).transpose()
    }

    pub(super) fn durations(
        &self,
        key: &str,
        bounds: RangeInclusive<Duration>,
    ) -> Result<Vec<Duration>, SettingsError> {
        self.parse_list(key)?.into_iter().map(|wait| duration(key, wait, &bounds)).collect()
    }

    fn value(&self, key: &str) -> Result<Value, SettingsError> {
        Ok(self.0.get(key)?)
    }
}

fn parsed<T: FromStr<Err: Display>>(key: &str, text: &str) -> Result<T, SettingsError> {
    text.parse().map_err(|error| SettingsError::value(key, format!("{error}: {text:?}")))
}

fn within<T: PartialOrd + Display>(
    key: &str,
    value: T,
    bounds: &RangeInclusive<T>,
) -> Result<T, SettingsError> {
    if bounds.contains(&value) {
        return Ok(value);
    }
    Err(SettingsError::value(
        key,
        format!("must be from {} to {}, not {value}", bounds.start(), bounds.end()),
    ))
}

fn duration(
    key: &str,
    value: humantime::Duration,
    bounds: &RangeInclusive<Duration>,
) -> Result<Duration, SettingsError> {
    let bounds = humantime::Duration::from(*bounds.start())..=(*bounds.end()).into();
    within(key, value, &bounds).map(Into::into)
}

/// Parses a file. Errors name the line but don't quote it, as it may hold secrets.
fn parse(name: &str, text: &str) -> Result<Map<String, Value>, SettingsError> {
    if let Err(error) = toml::from_str::<toml::Table>(text) {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        return Err(SettingsError::Syntax { file: name.into(), line, problem: error.message().into() });
    }
    Ok(config::Source::collect(&File::from_str(text, FileFormat::Toml))?)
}

/// The keys that exist.
struct Known(Map<String, Value>);

impl Known {
    fn has(&self, section: &str, key: &str) -> bool {
        matches!(self.0.get(section).map(|known| &known.kind), Some(ValueKind::Table(keys)) if keys.contains_key(key))
    }

    fn require_all(&self, file: &str, given: &Map<String, Value>) -> Result<(), SettingsError> {
        let unknown = |key: String| SettingsError::UnknownKey { key, place: file.to_owned() };
        for (section, value) in given {
            let ValueKind::Table(keys) = &value.kind else { return Err(unknown(section.clone())) };
            if !self.0.contains_key(section) {
                return Err(unknown(section.clone()));
            }
            if let Some(key) = keys.keys().filter(|key| !self.has(section, key)).min() {
                return Err(unknown(format!("{section}.{key}")));
            }
        }
        Ok(())
    }

    /// Returns the variables that are settings. Variables without `__` are ignored, because other programs
    /// set them (Kubernetes sets `REDIAL_PORT` and the like). It is an error if only the second underscore is
    /// missing.
    fn settings_among(&self, variables: &Variables) -> Result<Variables, SettingsError> {
        let mut settings = Variables::new();
        for (name, value) in variables {
            let Some(key) = name.strip_prefix(PREFIX).filter(|_| !value.is_empty()) else { continue };
            let key = key.to_lowercase();
            if let Some((section, rest)) = key.split_once("__") {
                if !self.has(section, rest) {
                    let key = format!("{section}.{}", rest.replace("__", "."));
                    return Err(SettingsError::UnknownKey {
                        key,
                        place: format!("the environment ({name})"),
                    });
                }
                settings.insert(name.clone(), value.clone());
            } else if let Some((section, rest)) =
                key.split_once('_').filter(|(section, rest)| self.has(section, rest))
            {
                let key = format!("{section}.{rest}");
                let problem = format!("is spelt with two underscores in the environment, not {name}");
                return Err(SettingsError::value(&key, problem));
            }
        }
        Ok(settings)
    }
}
