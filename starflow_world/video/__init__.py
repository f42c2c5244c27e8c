"""Text-to-video with the published STARFlow-V: conversion, generation, requirements."""
