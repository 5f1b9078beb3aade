// Compiles the specifications: node compile.js LANGUAGE OUTPUT_DIRECTORY SPEC.ksy...
// js-yaml and kaitai-struct-compiler come from NODE_PATH (see generate.py).
"use strict";

const fs = require("fs");
const path = require("path");
const compiler = require("kaitai-struct-compiler");
const yaml = require("js-yaml");

async function main(language, output, specs) {
  const load = (file) => yaml.load(fs.readFileSync(file, "utf8"));
  for (const spec of specs) {
    const importer = {
      importYaml: async (name) => load(path.join(path.dirname(spec), name + ".ksy")),
    };
    let files;
    try {
      files = await compiler.compile(language, load(spec), importer, false);
    } catch (error) {
      throw new Error(path.basename(spec) + ": " + error);
    }
    // A compilation returns the imported specifications too; each is written when its turn comes.
    for (const [name, text] of Object.entries(files)) {
      fs.writeFileSync(path.join(output, name), text);
    }
  }
}

main(process.argv[2], process.argv[3], process.argv.slice(4)).catch((error) => {
  console.error(String(error.message || error));
  process.exit(1);
});
