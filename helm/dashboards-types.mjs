// Writes a TypeScript file that holds each dashboard against the types of @grafana/schema, for the compiler to look at:
// node dashboards-types.mjs FOLDER_OF_DASHBOARDS FILE.ts
import { readdirSync, readFileSync, writeFileSync } from "node:fs";

const [folder, file] = process.argv.slice(2);
const kinds = { timeseries: "TimeSeries", heatmap: "Heatmap", stat: "Stat", table: "Table" };
const parts = ['import type { Dashboard } from "@grafana/schema";'];
for (const [kind, name] of Object.entries(kinds)) {
  const module = `@grafana/schema/dist/esm/raw/composable/${kind}/panelcfg/x/${name}PanelCfg_types.gen`;
  const names = kind === "stat" ? `Options as ${kind}Options` : `Options as ${kind}Options, FieldConfig as ${kind}Field`;
  parts.push(`import type { ${names} } from "${module}";`);
}
parts.push("// JSON has the values of an enumeration, not its members; what has a default may be left out.");
parts.push(
  "type Plain<T> = T extends string ? `${T}` : T extends (infer E)[] ? Plain<E>[] : T extends object ? { [K in keyof T]?: Plain<T[K]> } : T;",
);
let number = 0;
const hold = (type, value) => parts.push(`export const value${number++}: Plain<${type}> = ${JSON.stringify(value, null, 1)};`);
for (const name of readdirSync(folder).filter((each) => each.endsWith(".json"))) {
  const board = JSON.parse(readFileSync(`${folder}/${name}`, "utf8"));
  parts.push(`// ${name}`);
  hold("Dashboard", board);
  for (const panel of board.panels) {
    if (!(panel.type in kinds)) throw new Error(`${name}: no types for a panel of type ${panel.type}`);
    hold(`${panel.type}Options`, panel.options);
    if (panel.type !== "stat") hold(`${panel.type}Field`, panel.fieldConfig.defaults.custom ?? {});
  }
}
writeFileSync(file, parts.join("\n") + "\n");
