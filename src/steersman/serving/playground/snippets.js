// A request as a command or a program that anyone can run.

const quoteShell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

export function asCurl(url, body) {
  const lines = [`curl ${url}/v1/chat/completions`, "-H 'content-type: application/json'"];
  return [...lines, `-d ${quoteShell(JSON.stringify(body))}`].join(" \\\n  ");
}

export function asPython(url, body) {
  const { attributes, attribute_guidance, ...rest } = body;
  const extra = { attributes, ...(attribute_guidance === undefined ? {} : { attribute_guidance }) };
  const named = Object.entries(rest).map(([key, value]) => `    ${key}=${python(value)},`);
  return [
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${python(`${url}/v1`)}, api_key="none")`,
    "reply = client.chat.completions.create(",
    ...named,
    `    extra_body=${python(extra)},`,
    ")",
    "print(reply.choices[0].message.content)",
  ].join("\n");
}

function python(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object")
    return `{${Object.entries(value).map(([key, item]) => `${python(key)}: ${python(item)}`).join(", ")}}`;
  return JSON.stringify(value);
}
