//! A person's hands on a tab, and a screen reader's eyes: everything is found by role and name.
//!
//! What cannot be found here cannot be found by everybody. Begin with [`Page::click`].

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::page::{LOOK, Page};

/// For something to click to appear.
const FIND_WAIT_MAX: Duration = Duration::from_secs(30);

impl Page {
    /// Waits until something with this role and name is there to be used.
    ///
    /// # Errors
    /// It is not within `wait_max`.
    pub fn wait_for_role(
        &mut self,
        role: &str,
        name: &str,
        wait_max: Duration,
    ) -> anyhow::Result<()> {
        self.find(role, name, wait_max).map(drop)
    }

    /// Whether something with this role and name is there to be used now.
    ///
    /// # Errors
    /// Chromium does not answer.
    pub fn has(&self, role: &str, name: &str) -> anyhow::Result<bool> {
        Ok(!self.nodes(role, name)?.is_empty())
    }

    /// Clicks what has this role and accessible name, with the mouse, once it is there and enabled.
    ///
    /// # Errors
    /// It does not appear, or several have that name.
    pub fn click(&mut self, role: &str, name: &str) -> anyhow::Result<()> {
        let node = self.find(role, name, FIND_WAIT_MAX)?;
        let (x, y) = self
            .middle_of(&node)
            .with_context(|| format!("{role} '{name}'"))?;
        for (kind, buttons) in [("mouseMoved", 0), ("mousePressed", 1), ("mouseReleased", 0)] {
            let mut params = json!({ "type": kind, "x": x, "y": y, "buttons": buttons });
            if kind != "mouseMoved" {
                params["button"] = json!("left");
                params["clickCount"] = json!(1);
            }
            self.call("Input.dispatchMouseEvent", &params)?;
        }
        Ok(())
    }

    /// Moves the mouse over what has this role and accessible name: to its middle.
    ///
    /// # Errors
    /// It does not appear, or several have that name.
    pub fn hover(&mut self, role: &str, name: &str) -> anyhow::Result<()> {
        let node = self.find(role, name, FIND_WAIT_MAX)?;
        let (x, y) = self
            .middle_of(&node)
            .with_context(|| format!("{role} '{name}'"))?;
        self.move_mouse(x, y)
    }

    /// Moves the mouse to a place of the window, in CSS pixels.
    ///
    /// # Errors
    /// Chromium does not answer.
    pub fn move_mouse(&self, x: f64, y: f64) -> anyhow::Result<()> {
        let params = json!({ "type": "mouseMoved", "x": x, "y": y, "buttons": 0 });
        self.call("Input.dispatchMouseEvent", &params).map(drop)
    }

    /// Sets a field, a slider or a list to `value`, as typing or dragging does.
    ///
    /// # Errors
    /// It does not appear, or several have that name.
    pub fn set(&mut self, role: &str, name: &str, value: &str) -> anyhow::Result<()> {
        let node = self.find(role, name, FIND_WAIT_MAX)?;
        let script = "function (value) {
          this.focus();
          this.value = value;
          this.dispatchEvent(new Event('input', { bubbles: true }));
          this.dispatchEvent(new Event('change', { bubbles: true }));
        }";
        let held = self.call("DOM.resolveNode", &json!({ "backendNodeId": node }))?;
        let params = json!({
            "objectId": held["object"]["objectId"],
            "functionDeclaration": script,
            "arguments": [{ "value": value }],
        });
        self.call("Runtime.callFunctionOn", &params).map(drop)
    }

    /// Presses a key: `Tab`, `Enter`, `Escape`, an arrow, or one character.
    ///
    /// # Errors
    /// Chromium does not answer.
    pub fn press(&self, key: &str) -> anyhow::Result<()> {
        let (code, text) = match key {
            "Tab" => (9, None),
            "Enter" => (13, Some("\r")),
            "Escape" => (27, None),
            " " => (32, Some(" ")),
            "ArrowLeft" => (37, None),
            "ArrowUp" => (38, None),
            "ArrowRight" => (39, None),
            "ArrowDown" => (40, None),
            other => (0, Some(other)),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut params = json!({ "type": kind, "key": key, "windowsVirtualKeyCode": code });
            if let (Some(text), "keyDown") = (text, kind) {
                params["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", &params)?;
        }
        Ok(())
    }

    /// Role and name of what has the keyboard's focus; none where it is nowhere.
    ///
    /// # Errors
    /// Chromium does not answer.
    pub fn focused(&self) -> anyhow::Result<Option<(String, String)>> {
        let active = self.call(
            "Runtime.evaluate",
            &json!({ "expression": "document.activeElement" }),
        )?;
        let params = json!({ "objectId": active["result"]["objectId"], "fetchRelatives": false });
        let tree = self.call("Accessibility.getPartialAXTree", &params)?;
        let node = &tree["nodes"][0];
        let told = |part: &str| node[part]["value"].as_str().unwrap_or_default().to_owned();
        let role = told("role");
        Ok((!role.is_empty() && role != "RootWebArea").then(|| (role, told("name"))))
    }

    /// The one thing with that role and name, once it is there and enabled, by Chromium's number.
    fn find(&mut self, role: &str, name: &str, wait_max: Duration) -> anyhow::Result<Value> {
        let deadline = Instant::now() + wait_max;
        loop {
            // A document that is being replaced answers nothing; the next one will.
            let mut nodes = self.nodes(role, name).unwrap_or_default();
            match nodes.len() {
                1 => return Ok(nodes.remove(0)),
                0 => {}
                several => bail!("{several} have the role {role} and the name '{name}'"),
            }
            if Instant::now() >= deadline {
                bail!("no {role} '{name}' in {wait_max:?}\n{}", self.state());
            }
            let look = deadline.min(Instant::now() + LOOK);
            let mut held = self.connection.lock();
            while held.hear(look)? {}
        }
    }

    fn nodes(&self, role: &str, name: &str) -> anyhow::Result<Vec<Value>> {
        let document = self.call("DOM.getDocument", &json!({ "depth": 0 }))?;
        let params = json!({
            "nodeId": document["root"]["nodeId"],
            "role": role,
            "accessibleName": name,
        });
        let found = self.call("Accessibility.queryAXTree", &params)?;
        let usable = |node: &&Value| node["ignored"] == false && !has_property(node, "disabled");
        let nodes = found["nodes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(usable);
        Ok(nodes.map(|node| node["backendDOMNodeId"].clone()).collect())
    }

    /// Where it is, once it stands still: so long a person aims, too.
    fn middle_of(&self, node: &Value) -> anyhow::Result<(f64, f64)> {
        let deadline = Instant::now() + FIND_WAIT_MAX;
        let params = json!({ "backendNodeId": node });
        self.call("DOM.scrollIntoViewIfNeeded", &params)?;
        let mut seen = self.middle_now(&params)?;
        loop {
            self.evaluate("new Promise((done) => setTimeout(done, 100))")?;
            let middle = self.middle_now(&params)?;
            if middle == seen {
                return Ok(middle);
            }
            if Instant::now() >= deadline {
                bail!("it does not stand still");
            }
            seen = middle;
        }
    }

    fn middle_now(&self, params: &Value) -> anyhow::Result<(f64, f64)> {
        let quads = self.call("DOM.getContentQuads", params)?;
        let corners: Vec<f64> = quads["quads"][0]
            .as_array()
            .context("it takes no room on the page")?
            .iter()
            .filter_map(Value::as_f64)
            .collect();
        let mean = |first: usize| corners.iter().skip(first).step_by(2).sum::<f64>() / 4.0;
        Ok((mean(0), mean(1)))
    }
}

fn has_property(node: &Value, name: &str) -> bool {
    let mut properties = node["properties"].as_array().into_iter().flatten();
    properties.any(|one| one["name"] == name && one["value"]["value"] == true)
}
