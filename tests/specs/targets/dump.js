// Parses structs with the JavaScript parsers and prints what they hold as JSON lines.
// node dump.js DIRECTORY < requests; a request is {"type": "luo::ser", "params": [...], "data": hex}.
"use strict";

const path = require("path");
const readline = require("readline");
const KaitaiStream = require("kaitai-struct/KaitaiStream");

const directory = process.argv[2];
const camel = (name) => name.split("_").map((p) => p.charAt(0).toUpperCase() + p.slice(1)).join("");

function parser(name) {
  const [module, ...rest] = name.split("::");
  const top = camel(module);
  return rest.reduce(
    (found, part) => found[camel(part)],
    require(path.join(directory, top + ".js"))[top],
  );
}

function show(value) {
  if (value instanceof Uint8Array) return Buffer.from(value).toString("hex");
  if (typeof value === "string") return Buffer.from(value).toString("hex");
  if (typeof value === "boolean") return value ? 1 : 0;
  if (Array.isArray(value)) return value.map(show);
  if (value === null || typeof value !== "object") return value;
  const fields = {};
  for (const key of Object.keys(value)) {
    if (!key.startsWith("_") && value[key] !== undefined) fields[key] = show(value[key]);
  }
  const prototype = Object.getPrototypeOf(value);
  for (const [key, property] of Object.entries(Object.getOwnPropertyDescriptors(prototype))) {
    if (property.get && value[key] !== undefined) fields[key] = show(value[key]);
  }
  return fields;
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const request = JSON.parse(line);
  let answer;
  try {
    const stream = new KaitaiStream(new Uint8Array(Buffer.from(request.data, "hex")));
    const parsed = new (parser(request.type))(stream, null, null, ...request.params);
    answer = show(parsed);
  } catch (error) {
    answer = { error: error.name };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
});
