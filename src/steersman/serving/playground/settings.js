// What the user has set, kept in the browser: the sampling, and for each setting its dials.

const PLACE = "steersman.settings";

export const SAMPLING = { temperature: 0.7, top_p: 0.9, max_tokens: 256, seed: null };
export const NAMES = { a: "Setting A", b: "Setting B" };

const middle = (attribute) => Math.round((attribute.low + attribute.high) / 2);
export const defaults = (schema) => Object.fromEntries(schema.map((a) => [a.name, a.default ?? middle(a)]));

export function presets(schema) {
  const all = (pick) => Object.fromEntries(schema.map((a) => [a.name, pick(a)]));
  const found = [["Default", defaults(schema)], ["All low", all((a) => a.low)], ["All high", all((a) => a.high)]];
  const names = new Set(schema.map((a) => a.name));
  const top = (name) => schema.find((a) => a.name === name).high;
  if (names.has("humor")) found.push(["Funny", { ...defaults(schema), humor: top("humor") }]);
  if (names.has("verbosity")) found.push(["Brief", { ...defaults(schema), verbosity: 0 }]);
  return found;
}

// Stored settings, made to fit the schema: unknown attributes are dropped, missing ones take their defaults.
export function load(schema) {
  let stored = {};
  try {
    stored = JSON.parse(localStorage.getItem(PLACE)) ?? {};
  } catch {
    // damaged, or storage is forbidden: start afresh
  }
  const setting = (values = {}, guidance = 1) => ({
    values: Object.fromEntries(
      schema.map((a) => {
        const value = values[a.name];
        const fits = Number.isInteger(value) && value >= a.low && value <= a.high;
        return [a.name, fits ? value : defaults(schema)[a.name]];
      }),
    ),
    guidance,
  });
  const opposite = Object.fromEntries(schema.map((a) => [a.name, a.low + a.high - defaults(schema)[a.name]]));
  return {
    compare: stored.compare ?? false,
    sampling: { ...SAMPLING, ...stored.sampling },
    a: setting(stored.a?.values, stored.a?.guidance),
    b: setting(stored.b?.values ?? opposite, stored.b?.guidance),
  };
}

export function save(settings) {
  try {
    localStorage.setItem(PLACE, JSON.stringify(settings));
  } catch {
    // storage is forbidden: the settings last as long as the page
  }
}
